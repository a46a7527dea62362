// What to look at first: each sets both variants and the points, and says in a sentence what there is to see.
const USUAL = { sampler: "ddim", schedule: "sigmoid", timesteps: 50, difference: 0, eta: 0 };

const EXAMPLES = [
  {
    name: "Smooth or jagged",
    lesson:
      "DDIM (left) carries each particle along a smooth curve, so neighbors stay neighbors and the colors keep their order. DDPM (right) adds new noise in every step: the paths are jagged and the colors mix, yet the particles end in the same shape.",
    points: "moons",
    left: {},
    right: { sampler: "ddpm" },
  },
  {
    name: "Five steps cut corners",
    lesson:
      "The same sampler and the same noise. Fifty steps (left) follow the curves; five (right) take each bend in one straight line. Where a path is nearly straight this costs nothing, elsewhere particles miss the shape or crowd together.",
    points: "spiral",
    left: {},
    right: { timesteps: 5 },
  },
  {
    name: "Wasted steps",
    lesson:
      "Ten steps each, drawn as lines at their noise levels below the pictures. The schedule on the right spends seven of them in nearly pure noise, where a step changes little, and leaves the rest to the last three: the particles never reach the ring.",
    points: "ring",
    left: { timesteps: 10 },
    right: { timesteps: 10, schedule: "noisy" },
  },
  {
    name: "Time difference",
    lesson:
      "Twenty steps each. On the right, every step removes the noise of two more steps than planned: the particles arrive early and gather in the middle of each island. That looks cleaner, but it is less varied than the training set.",
    points: "islands",
    left: { timesteps: 20 },
    right: { timesteps: 20, difference: 2 },
  },
];

const OWN = "Both sides start from the same noise, and a particle has the same color on both. Change one setting and watch what it does.";

// Buttons for all of them. `choose` gets the one that was pressed.
function createExamples({ root, choose }) {
  const buttons = EXAMPLES.map((example) => {
    const button = createElement("button", "", example.name);
    button.type = "button";
    button.addEventListener("click", () => choose(example));
    return button;
  });
  root.querySelector(".examples").append(...buttons);

  // The example that is shown, or null after a setting was changed.
  function mark(shown) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(EXAMPLES[i] === shown)));
    root.querySelector(".lesson").textContent = shown ? shown.lesson : OWN;
  }

  return { mark };
}
