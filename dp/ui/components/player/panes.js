// The two panes with x_t and the prediction of x0. They show `state.run.frames[state.position]`: all of its images, or
// the selected one. A frame that is superseded before it could be drawn is skipped.
function createPanes({ root, state }) {
  const canvases = { x_t: root.querySelector(".noisy canvas"), x0: root.querySelector(".prediction canvas") };
  let drawn = null; // the frame on the canvases
  let drawing = null; // a promise while the loop runs

  const current = () => state.run.frames[state.position];

  async function drawLoop() {
    await null; // the caller sets `drawing` first
    for (let frame = current(); frame && frame !== drawn; frame = current()) {
      drawn = frame; // before the images are decoded, so that `invalidate` has an effect in the meantime
      await draw(frame).catch(console.warn); // a damaged frame is skipped
      root.dataset.step = frame.index;
      if (frame === current()) root.dataset.state = state.value.state; // else it belongs to a frame not yet drawn
      await new Promise(requestAnimationFrame); // let the browser paint before the next one
    }
    drawing = null;
  }

  async function draw(frame) {
    const { run, selected } = state;
    const tile = selected?.sheets?.indices.indexOf(frame.index) ?? -1;
    for (const [key, canvas] of Object.entries(canvases)) {
      if (tile >= 0) paintTile(canvas, selected.sheets[key], tile, selected.sheets.columns);
      else if (frame[key]) {
        const image = await decodeImage(frame[key]);
        if (state.selected) paintTile(canvas, image, state.selected.row, run.columns());
        else paint(canvas, image, 0, 0, image.width, image.height);
        image.close();
      }
    }
    canvases.x_t.setAttribute("aria-label", `Noisy images at step ${frame.index} of ${run.timesteps}`);
    canvases.x0.setAttribute("aria-label", `Predicted images at step ${frame.index} of ${run.timesteps}`);
    root.classList.add("drawn");
  }

  function paint(canvas, image, x, y, width, height) {
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height); // an image may be transparent
    pen.drawImage(image, x, y, width, height, 0, 0, width, height);
  }

  function paintTile(canvas, image, index, columns) {
    const side = image.width / columns;
    paint(canvas, image, ...tilePosition(index, columns, side), side, side);
  }

  return {
    canvases,
    paint,
    paintTile,
    isDrawn: (frame) => frame === drawn,
    invalidate: () => (drawn = null),
    draw: () => (drawing ||= drawLoop()),
    whenDrawn: () => drawing,
  };
}
