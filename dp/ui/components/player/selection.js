// One image shown alone, in large, with a strip of its prediction across the run.
function createSelection({ root, state, server, panes, refresh, goTo }) {
  const STRIP_IMAGES = 10;
  const strip = root.querySelector(".strip canvas");

  // Select an image, as far as the frames in the page show it.
  function select(row) {
    state.selected = { row, sheets: null };
    root.classList.add("selected");
    root.dataset.image = row;
    panes.invalidate();
    refresh();
  }

  // Select an image, and load all of its frames losslessly if the run has ended.
  async function showImage(row) {
    select(row);
    const { run, selected } = state;
    if (!run.isRecalled || !run.id) return;
    try {
      const sheets = await server.closeup({ run: run.id, row });
      if (!sheets) return; // the server no longer has the run
      const [x_t, x0] = [await decodeImage(sheets.x_t), await decodeImage(sheets.x0)];
      if (selected !== state.selected) return;
      selected.sheets = { ...sheets, x_t, x0 };
      panes.invalidate();
      refresh();
      drawStrip(selected.sheets);
    } catch (error) {
      console.warn(error);
    }
  }

  function showAll() {
    if (!state.selected) return;
    state.selected = null;
    root.classList.remove("selected");
    delete root.dataset.image;
    const bar = root.querySelector(".strip");
    if (bar.contains(document.activeElement)) root.focus(); // else the keys would go to the page
    bar.hidden = true;
    panes.invalidate();
    refresh();
  }

  // Evenly spaced indices into the frames, with the first and the last.
  function stripFrames(count) {
    const many = Math.min(STRIP_IMAGES, count);
    return Array.from({ length: many }, (_, i) => Math.round((i * (count - 1)) / Math.max(many - 1, 1)));
  }

  function drawStrip({ x0, columns, indices }) {
    const [side, chosen] = [x0.width / columns, stripFrames(indices.length)];
    root.querySelector(".strip").hidden = false;
    [strip.width, strip.height] = [chosen.length * (side + 1) - 1, side];
    const pen = strip.getContext("2d");
    chosen.forEach((at, i) => {
      pen.drawImage(x0, ...tilePosition(at, columns, side), side, side, i * (side + 1), 0, side, side);
    });
  }

  for (const canvas of Object.values(panes.canvases))
    canvas.addEventListener("click", (event) => {
      const { run } = state;
      if (state.selected) return showAll();
      if (!run.frames.length) return;
      const row = tileAt(event, canvas, run.columns(), Math.ceil(run.images / run.columns()));
      if (row >= 0 && row < run.images) showImage(row);
    });
  root.querySelector(".show-all").addEventListener("click", showAll);
  strip.addEventListener("click", (event) => {
    const { indices } = state.selected.sheets;
    const chosen = stripFrames(indices.length);
    const index = indices[chosen[Math.floor((event.offsetX / strip.clientWidth) * chosen.length)]];
    goTo(state.run.frames.findIndex((frame) => frame.index === index));
  });

  return { select, showImage, showAll };
}
