// A panel about the selected image at the step that is shown. While it is open, the server computes its content.
// `show` and `hide` fill and empty it; `isAvailable(row)`: whether there is something to show about an image.
function createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show, hide }) {
  const DELAY_MS = 150; // of a request, so that a quick succession of steps causes only one
  const button = root.querySelector(`.${name}-toggle`);
  const summary = root.querySelector(`.${name}-summary`);
  let found = null; // the answer: { index, row, run, image, ... }
  let pending = null; // { index, row, run } of the request under way
  let isOpen = false;

  function update() {
    const { run, selected, position } = state;
    const shown = run.frames[position];
    button.hidden = !selected || !isAvailable(selected.row);
    root.querySelector(`.inspector.${name}`).hidden = !isOpen || button.hidden;
    if (!isOpen || button.hidden || isWalking() || !run.isRecalled || !run.id || !shown) return clear();
    if (found && found.index === shown.index && found.row === selected.row && found.run === run) return show(found);
    clear();
    const asked = (pending = { index: shown.index, row: selected.row, run });
    setTimeout(() => asked === pending && load(asked), DELAY_MS);
  }

  async function load(asked) {
    const { index, row, run } = asked;
    summary.textContent = waiting;
    const answer = (await ask({ run: run.id, row, index })) || { problem: "The server no longer has this run." };
    if (asked !== pending) return;
    if (answer.problem) return void (summary.textContent = answer.problem);
    const next = { ...answer, ...asked, image: await decodeImage(answer.sheet) };
    if (asked === pending) show((found = next));
  }

  function clear() {
    pending = null;
    hide();
    if (isOpen && state.selected) summary.textContent = state.run.isRecalled ? "" : "Available when the run has finished.";
  }

  button.addEventListener("click", () => {
    isOpen = !isOpen;
    button.setAttribute("aria-pressed", String(isOpen));
    update();
  });
  // Another frame or another image is shown.
  new MutationObserver(update).observe(root, { attributeFilter: ["data-step", "data-image", "data-kept"] });
}

// Draw the images of a sheet with one line, one on each canvas.
function drawTiles(canvases, sheet) {
  const side = sheet.height;
  canvases.forEach((canvas, i) => {
    [canvas.width, canvas.height] = [side, side];
    canvas.getContext("2d").drawImage(sheet, i * side, 0, side, side, 0, 0, side, side);
    canvas.classList.remove("stale");
  });
}
