// Two runs in the plane, computed in this page and played on one clock. Nothing is computed before the tab is shown.
const REPLAY_S = 6; // duration of a replay at 1x
const POSITIONS = 100; // of the slider

const $ = (selector) => element.querySelector(selector);
const [root, viewer] = [$(".plane"), $(".viewer")];
const [scrub, particles, choice] = [$(".scrub"), $(".particles"), $(".points")];
const shows = { trails: true, field: false, density: true };
let points = new Float64Array(); // the training set
let [seed, followed] = [1, null];
let toFollow = null; // a particle, once the runs are computed
let [isBegun, isComputing, isStale, startsOver] = [false, false, false, false];

const sides = ["left", "right"].map((name) => {
  const [figure, form] = [$(`.side.${name}`), $(`.variant-settings.${name}`)];
  const canvas = figure.querySelector(".world");
  const variant = createVariant({ form, samplers: props.samplers, onChange: change });
  const levels = createLevels({ canvas: figure.querySelector(".levels"), root });
  return { name, figure, canvas, variant, view: createView({ canvas, root }), levels, run: null };
});
const examples = createExamples({ root, choose });
const pad = createPad({ canvas: $(".pad"), root, pointsOf: () => points, add: addPoint, finish: change });
const transport = createTransport({
  root: viewer,
  rate: () => POSITIONS / REPLAY_S,
  end: () => POSITIONS,
  show: place,
  onEnd: () => place(POSITIONS),
  playFrom: () => (isEmpty() ? null : Number(scrub.value) >= POSITIONS ? 0 : Number(scrub.value)),
  goTo,
  step,
  goLive: () => {},
  keys: {
    Enter: () => follow(followed ?? 0),
    ArrowUp: () => follow((followed || countParticles()) - 1),
    ArrowDown: () => follow((followed + 1) % countParticles()),
    Escape: () => follow(null),
  },
  shortcuts: [
    ["← →", "one step back, forward"],
    ["Home, End", "first step, last step"],
    ["Space", "play, pause"],
    ["Enter", "follow a particle"],
    ["↑ ↓", "the particle before, after"],
    ["Esc", "all particles"],
  ],
  isIgnored: (key) => followed === null && (key === "ArrowUp" || key === "ArrowDown"), // they scroll the page
});

[scrub.max, scrub.step] = [POSITIONS, "any"];
scrub.setAttribute("aria-label", "Progress");

function isEmpty() {
  return !sides[0].run;
}

function countParticles() {
  return isEmpty() ? 0 : sides[0].run.x[0].length / 2;
}

// ---- the runs

function choose(example) {
  sides.forEach(({ name, variant }) => variant.set(example[name]));
  choice.value = example.points;
  points = POINT_SETS[example.points].make();
  follow(null);
  computeFromStart();
  examples.mark(example);
}

root.addEventListener("show-moment", ({ detail }) => {
  choose(EXAMPLES.find(({ name }) => name === detail.example));
  toFollow = detail.follow ?? null;
});

// A setting is no longer that of an example.
function change() {
  examples.mark(null);
  compute();
}

function computeFromStart() {
  startsOver = true;
  transport.pause();
  compute();
}

// Compute both runs, and then show them in the place of those before. A change in the meantime begins again.
async function compute() {
  isStale = true;
  describe();
  if (isComputing) return;
  isComputing = true;
  viewer.setAttribute("aria-busy", "true");
  while (isStale) {
    isStale = false;
    const runs = points.length ? sides.map(({ variant }) => prepare(variant)) : [];
    if (!(await completeRuns(runs, () => !isStale))) continue;
    sides.forEach((side, i) => (side.run = runs[i] || null));
  }
  isComputing = false;
  viewer.setAttribute("aria-busy", "false");
  showRuns();
}

function prepare(variant) {
  const noise = createNoise(seed, Number(particles.value));
  return createRun({ plan: makePlan(variant.toPlan()), denoiser: createDenoiser(points), noise });
}

function describe() {
  sides.forEach(({ figure, variant }, i) => (figure.querySelector("figcaption").textContent = variant.describe(sides[1 - i].variant)));
  $(".particle-count").textContent = particles.value;
  const count = points.length / 2;
  const hint = count < MAX_POINTS ? "Draw to add more." : "That is the limit. To draw others, clear these.";
  $(".count").textContent = `${count} ${count === 1 ? "point" : "points"}. ${hint}`;
  pad.draw();
}

function showRuns() {
  if (toFollow !== null || followed >= countParticles()) follow(toFollow);
  toFollow = null;
  transport.update({ isEnabled: !isEmpty(), isLive: false, isFollowing: false });
  root.dataset.state = isEmpty() ? "empty" : "ready";
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  place(startsOver ? (isStill ? POSITIONS : 0) : Number(scrub.value));
  if (startsOver && !isStill) transport.togglePlay();
  startsOver = false;
}

// ---- the position in both runs, from 0 to POSITIONS

function place(value) {
  scrub.value = value;
  draw();
}

function goTo(value) {
  transport.pause();
  place(clamp(value, 0, POSITIONS));
}

function step(by) {
  const size = POSITIONS / Math.max(...sides.map(({ run }) => run?.steps || 1));
  goTo(Math.round(Number(scrub.value) / size + by) * size);
}

const positionIn = (run) => (run.steps * Number(scrub.value)) / POSITIONS;
const stepIn = (run) => Math.floor(positionIn(run) + 1e-9); // steps that are over

function draw() {
  for (const { figure, canvas, view, levels, run } of sides) {
    const position = run && positionIn(run);
    view.draw({ run, position, shows, followed });
    levels.draw(run, position);
    const text = run ? caption(run) : "Draw some points, or choose a training set.";
    const label = `${figure.querySelector("figcaption").textContent}: ${text}`;
    if (canvas.ariaLabel === label) continue;
    canvas.ariaLabel = label;
    figure.querySelector(".reading").textContent = text;
    figure.dataset.step = run ? stepIn(run) : "";
  }
  scrub.setAttribute("aria-valuetext", `${Math.round((100 * Number(scrub.value)) / POSITIONS)}% of the run`);
  tellFollowed();
}

function caption(run) {
  const k = stepIn(run);
  const { log_snr } = k < run.steps ? run.plan.t[k] : run.plan.s[k - 1];
  const level = log_snr > 100 ? "finished" : `log-SNR ${log_snr.toFixed(1).replace("-0.0", "0.0").replace("-", "−")}`;
  return `step ${k} of ${run.steps}\u00a0· ${level}`; // a line ends after the dot
}

// ---- one particle

function follow(particle) {
  followed = isEmpty() ? null : particle;
  root.dataset.followed = followed ?? "";
  $(".follow").setAttribute("aria-pressed", String(followed !== null));
  draw();
}

function tellFollowed() {
  $(".followed").textContent = followed === null ? "" : describeFollowed(...sides.map(({ run }) => countCandidates(run)));
}

function describeFollowed(left, right) {
  const counts = `The ringed particle can still become about ${left} points on the left, ${right} on the right.`;
  return `${counts} The dashed line goes to their mean, its prediction (x₀).`;
}

function countCandidates(run) {
  const { k } = placeIn(run, positionIn(run));
  const weights = run.denoiser.weigh(run.x[k][2 * followed], run.x[k][2 * followed + 1], run.plan.t[k]);
  const count = effectiveCount(weights);
  return count.toFixed(count < 10 ? 1 : 0);
}

for (const side of sides)
  side.canvas.addEventListener("click", (event) => {
    if (isEmpty()) return;
    const particle = side.view.particleAt(event, placeIn(side.run, positionIn(side.run)).x);
    follow(particle === followed ? null : particle);
  });

// ---- the controls

// The points are shown at once; the runs follow as soon as the ones before are complete.
function addPoint(point) {
  if (points.length / 2 < MAX_POINTS) points = Float64Array.of(...points, ...point);
  choice.value = "drawn";
  if (isComputing) describe();
  else change();
}

choice.append(...Object.entries(POINT_SETS).map(([name, set]) => new Option(set.name, name)));
choice.addEventListener("change", () => {
  points = POINT_SETS[choice.value].make();
  change();
});
$(".clear").addEventListener("click", () => {
  choice.value = "drawn";
  points = new Float64Array();
  follow(null);
  change();
});
particles.addEventListener("input", change);
$(".renew").addEventListener("click", () => {
  seed += 1;
  computeFromStart();
});
$(".follow").addEventListener("click", () => follow(followed === null ? Math.floor(Math.random() * countParticles()) : null));
for (const button of root.querySelectorAll("[data-shows]"))
  button.addEventListener("click", () => {
    shows[button.dataset.shows] = !shows[button.dataset.shows];
    button.setAttribute("aria-pressed", String(shows[button.dataset.shows]));
    draw();
  });

// ---- the tab: it begins when it is first seen, and pauses while it is not

function refit() {
  for (const { view, levels } of sides) [view, levels].forEach((part) => part.refit());
  pad.draw();
  draw();
}

new IntersectionObserver(() => {
  if (!root.checkVisibility()) return transport.pause();
  if (isBegun) return;
  isBegun = true;
  new ResizeObserver(refit).observe($(".sides"));
  new MutationObserver(refit).observe(document.body, { attributeFilter: ["class"] }); // the theme
  choose(EXAMPLES[0]);
}).observe(root);
