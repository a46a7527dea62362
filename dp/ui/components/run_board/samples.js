// The images that the run draws from the same seeds during training: one row per step, newest first, and all of them as
// an animation. Each row also opens the checkpoint of its step, if there is one.
function createSamples({ root, details, board, tabs, trigger }) {
  const GRID = 4; // rows and columns of the server's image, unless it has a column for each class
  const [ANIMATION_S, MIN_PER_S, MAX_PER_S] = [6, 2.5, 16];
  const $ = (selector) => root.querySelector(selector);
  const [animation, screen, scrub, list] = [$(".animation"), $(".animation canvas"), $(".scrub"), $(".checkpoints")];
  let samples = []; // { step, image }, by rising step
  let position = null; // of the one that the animation shows; null: the newest
  const playback = createPlayback({
    root: animation,
    rate: () => Math.min(Math.max(samples.length / ANIMATION_S, MIN_PER_S), MAX_PER_S),
    end: () => samples.length - 1,
    show: (at) => show(Math.floor(at)),
    onEnd: () => show(null),
  });

  function clear() {
    playback.pause();
    [samples, position] = [[], null];
    delete details.dataset.samples;
    list.replaceChildren();
    animation.hidden = $(".samples-header").hidden = true;
  }

  async function add(added) {
    const { runId } = board;
    const decoded = await Promise.all(added.map(([step, src]) => decode(src).then((image) => ({ step, image }))));
    if (runId !== board.runId) return;
    for (const { step, image } of decoded) {
      if (!image) continue;
      samples.push({ step, image });
      drawRow(rowOf(step), image);
      details.dataset.samples = samples.length;
    }
    if (!samples.length) return;
    animation.hidden = false;
    show(position);
  }

  // The image, or null if the file is damaged.
  async function decode(src) {
    const image = Object.assign(new Image(), { src });
    return image.decode().then(() => image, () => null);
  }

  // The row of a step; a new one is inserted in its place.
  function rowOf(step) {
    $(".samples-header").hidden = false;
    const next = [...list.children].find((row) => Number(row.dataset.step) <= step);
    if (next && Number(next.dataset.step) === step) return next;
    const [row, canvas, openIn] = [createElement("li", "", ""), createElement("canvas", "", ""), createElement("span", "open-in", "")];
    row.dataset.step = step;
    openIn.append(...tabs.map((tab) => createOpenButton(step, tab)));
    openIn.hidden = !board.facts?.checkpoints.includes(step); // Sample now saves no checkpoint
    canvas.hidden = true;
    row.append(createElement("span", "at", `step ${formatNumber(step)}`), canvas, openIn);
    list.insertBefore(row, next || null);
    return row;
  }

  function createOpenButton(step, tab) {
    const name = tab[0].toUpperCase() + tab.slice(1);
    const button = Object.assign(createElement("button", "", name), { type: "button", ariaLabel: `Open in ${name}` });
    button.addEventListener("click", () => trigger("opened", { run: board.runId, checkpoint: step, tab }));
    return button;
  }

  // The first images of the grid, side by side.
  function drawRow(row, image) {
    const canvas = row.querySelector("canvas");
    const columns = image.width / board.facts?.image_size;
    const [grid, side] = Number.isInteger(columns) ? [columns, board.facts.image_size] : [GRID, image.width / GRID];
    const count = Math.min(root.clientWidth < 600 ? 6 : 10, grid * Math.floor(image.height / side));
    [canvas.width, canvas.height, canvas.hidden] = [side * count, side, false];
    const pen = canvas.getContext("2d");
    for (let i = 0; i < count; i++) pen.drawImage(image, ...tilePosition(i, grid, side), side, side, i * side, 0, side, side);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Samples at step ${row.dataset.step}`);
  }

  // Pause and Save now make checkpoints without samples, which can be opened too.
  function markCheckpoints(steps) {
    for (const step of steps) rowOf(step).querySelector(".open-in").hidden = false;
  }

  function show(at) {
    position = at;
    const index = at ?? samples.length - 1;
    if (!samples[index]) return;
    const { step, image } = samples[index];
    if (screen.width !== image.width) [screen.width, screen.height] = [image.width, image.height];
    screen.getContext("2d").drawImage(image, 0, 0);
    [scrub.max, scrub.value] = [samples.length - 1, index];
    $(".animation output").textContent = `step ${formatNumber(step)}`;
  }

  $(".animation .play").addEventListener("click", () => {
    if (playback.isPlaying()) return playback.pause();
    const start = position === null || position >= samples.length - 1 ? 0 : position;
    show(start);
    playback.play(start);
  });
  scrub.addEventListener("input", () => {
    playback.pause();
    show(Number(scrub.value) === samples.length - 1 ? null : Number(scrub.value));
  });

  return { add, clear, markCheckpoints };
}
