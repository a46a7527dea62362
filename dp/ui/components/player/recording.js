// Before the first run of a page: a recorded run of its model, over and over, so that the page is not empty.
function createRecording({ root, panes, server, isIdle }) {
  const FRAME_MS = 250;
  const PAUSE_FRAMES = 8; // on the result
  let timer = null;

  async function begin() {
    const recording = await server.recording({}).catch(() => null);
    const image = recording && (await decodeImage(recording.sheet)); // a column for each step: x_t above x0
    if (!image || !isIdle()) return;
    const side = image.height / 2;
    const steps = image.width / side;
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let at = isStill ? steps - 1 : 0;
    const draw = () => {
      if (document.hidden && root.dataset.recorded) return;
      const column = Math.min(at, steps - 1);
      panes.paint(panes.canvases.x_t, image, column * side, 0, side, side);
      panes.paint(panes.canvases.x0, image, column * side, side, side, side);
      root.dataset.recorded = `${column + 1}/${steps}`;
      at = (at + 1) % (steps + PAUSE_FRAMES);
    };
    root.classList.add("drawn");
    root.querySelector(".step").textContent = "Recorded. Press Generate for your own.";
    draw();
    if (!isStill) timer = setInterval(draw, FRAME_MS);
  }

  function end() {
    clearInterval(timer);
    if (!root.dataset.recorded) return;
    delete root.dataset.recorded;
    root.classList.remove("drawn");
    for (const canvas of Object.values(panes.canvases)) [canvas.width, canvas.height] = [1, 1];
  }

  begin();
  return { end };
}
