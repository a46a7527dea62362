// A walk between two seeds: its images side by side, and a button that shows them one after the other, back and forth.
function createWalk({ root, state, selection, pause }) {
  const COLUMNS = 16; // at most
  const IMAGES_PER_S = 6;
  const [button, canvas] = [root.querySelector(".play-walk"), root.querySelector(".walk canvas")];
  let timer = null;
  let decoded = null; // { frame, image } of the frame that is drawn

  const columns = () => Math.min(state.run.images, COLUMNS);
  const rows = () => Math.ceil(state.run.images / columns());

  async function draw() {
    const { run, position } = state;
    const shown = run.frames[position];
    root.querySelector(".walk").hidden = !run.isWalk || !shown;
    if (!run.isWalk || !shown) return;
    const image = decoded?.frame === shown ? decoded.image : await decodeImage(shown.x0);
    decoded = { frame: shown, image };
    const side = image.width / run.columns();
    [canvas.width, canvas.height] = [columns() * side, rows() * side];
    const pen = canvas.getContext("2d");
    for (let i = 0; i < run.images; i++) {
      const [from, to] = [tilePosition(i, run.columns(), side), tilePosition(i, columns(), side)];
      pen.drawImage(image, ...from, side, side, ...to, side, side);
    }
    if (state.selected) frameTile(pen, tilePosition(state.selected.row, columns(), side), side);
  }

  function frameTile(pen, [x, y], side) {
    [pen.strokeStyle, pen.lineWidth] = [getComputedStyle(root).getPropertyValue("--color-accent"), side / 20];
    pen.strokeRect(x + pen.lineWidth / 2, y + pen.lineWidth / 2, side - pen.lineWidth, side - pen.lineWidth);
  }

  function play() {
    pause();
    mark(true);
    let [row, direction] = [state.selected ? state.selected.row : 0, 1];
    selection.select(row);
    timer = setInterval(() => {
      const { run, selected } = state;
      if (!selected || run.images < 2) return stop(); // all images are shown again, or another run has begun
      if (row + direction < 0 || row + direction >= run.images) direction = -direction;
      selection.select((row += direction)); // its lossless frames are not loaded: the next image follows at once
    }, 1000 / IMAGES_PER_S);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    mark(false);
    if (state.selected) selection.showImage(state.selected.row);
  }

  function mark(isPlaying) {
    button.setAttribute("aria-pressed", String(isPlaying));
  }

  button.addEventListener("click", () => (timer ? stop() : play()));
  canvas.addEventListener("click", (event) => {
    const row = tileAt(event, canvas, columns(), rows());
    if (timer) stop();
    if (row >= 0 && row < state.run.images) selection.showImage(row);
  });
  new MutationObserver(draw).observe(root, { attributeFilter: ["data-step", "data-image", "data-state"] });

  return { isPlaying: () => timer !== null };
}
