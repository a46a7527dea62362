// One image shown alone, in large, with a strip of its prediction across the run.
function createSelection({ root, state, server, panes, refresh, goTo }) {
  const STRIP_IMAGES = 10;
  const strip = root.querySelector(".strip");
  const list = root.querySelector(".strip-steps");

  // Select an image, as far as the frames in the page show it.
  function select(row) {
    state.selected = { row, sheets: null };
    root.classList.add("selected");
    root.dataset.image = row;
    strip.hidden = false;
    list.replaceChildren();
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
    const { activeElement: focused } = document;
    if (strip.contains(focused) || focused?.closest(".of-image")) root.focus(); // else the keys would go to the page
    strip.hidden = true;
    panes.invalidate();
    refresh();
  }

  // Evenly spaced indices into the frames, with the first and the last.
  function stripFrames(count) {
    const many = Math.min(STRIP_IMAGES, count);
    return Array.from({ length: many }, (_, i) => Math.round((i * (count - 1)) / Math.max(many - 1, 1)));
  }

  function drawStrip({ x0, columns, indices }) {
    const side = x0.width / columns;
    const buttons = stripFrames(indices.length).map((at) => {
      const button = Object.assign(document.createElement("button"), { type: "button", title: `Go to step ${indices[at]}` });
      const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
      canvas.getContext("2d").drawImage(x0, ...tilePosition(at, columns, side), side, side, 0, 0, side, side);
      button.append(canvas, indices[at]);
      button.setAttribute("aria-label", `Step ${(button.dataset.step = indices[at])}`);
      button.addEventListener("click", () => goTo(state.run.frames.findIndex((frame) => frame.index === indices[at])));
      return button;
    });
    list.replaceChildren(...buttons.map((button) => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    markStrip();
  }

  // Mark the last step of the strip that is not after the one shown.
  function markStrip() {
    const buttons = [...list.querySelectorAll("button")];
    const current = buttons.findLast((button) => Number(button.dataset.step) <= Number(root.dataset.step));
    for (const button of buttons) button.ariaCurrent = button === current ? "step" : null;
  }

  for (const canvas of Object.values(panes.canvases))
    canvas.addEventListener("click", (event) => {
      const { run } = state;
      if (state.selected) return showAll();
      if (!run.frames.length) return;
      const row = tileAt(event, canvas, run.columns(), Math.ceil(run.images / run.columns()));
      if (row >= 0 && row < run.images) showImage(row);
    });
  root.querySelector(".show-all")?.addEventListener("click", showAll);
  new MutationObserver(markStrip).observe(root, { attributeFilter: ["data-step"] });

  return { select, showImage, showAll };
}
