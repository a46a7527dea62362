// Two buttons that start the next run, from the same noise or from new noise. Again keeps the result that is shown, to
// look at it in place of the new one.
function createRerun({ root, state, panes, trigger, refresh }) {
  const [again, renew, toggle, difference] = ["again", "renew", "before", "difference"].map((name) => root.querySelector(`.${name}`));
  const overlay = Object.assign(document.createElement("canvas"), { className: "overlay" });
  let kept = null; // the previous result: { x0, columns, images }
  let isAgain = false; // whether the run that begins is of the same noise
  let compared = null; // the images that were compared with the previous result

  function start(isSame) {
    const { run } = state;
    if (isSame) kept = { x0: run.frames.at(-1).x0, columns: run.columns(), images: run.images };
    isAgain = isSame;
    trigger("rerun", { seed: isSame ? run.seed : null });
    root.focus();
  }

  function begin() {
    if (!isAgain) kept = null;
    [isAgain, compared] = [false, null];
    if (isShown()) show(false);
  }

  function update({ isLive }) {
    const newest = state.run.frames.at(-1);
    again.disabled = renew.disabled = isLive || !newest || !state.run.id;
    toggle.hidden = !kept;
    const isComparable = kept && newest && !isLive && kept.images === state.run.images;
    if (!isComparable) difference.textContent = "";
    else if (newest.x0 !== compared) compare((compared = newest.x0));
  }

  async function compare(x0) {
    const [before, after] = await Promise.all([kept.x0, x0].map(readPixels));
    if (x0 !== compared || before.length !== after.length) return;
    const sum = before.reduce((total, value, i) => total + (i % 4 === 3 ? 0 : ((value - after[i]) / 255) ** 2), 0);
    difference.textContent = `RMS difference to it: ${Math.sqrt(sum / (before.length * 0.75)).toFixed(3)} (white is 1)`;
  }

  async function show(isShown) {
    toggle.setAttribute("aria-pressed", String(isShown));
    refresh();
    if (!isShown) return overlay.remove();
    const image = await decodeImage(kept.x0);
    const { selected } = state;
    if (selected && selected.row < kept.images) panes.paintTile(overlay, image, selected.row, kept.columns);
    else panes.paint(overlay, image, 0, 0, image.width, image.height);
    panes.canvases.x0.after(overlay);
  }

  const isShown = () => toggle.getAttribute("aria-pressed") === "true";
  again.addEventListener("click", () => start(true));
  renew.addEventListener("click", () => start(false));
  toggle.addEventListener("click", () => show(!isShown()));
  new MutationObserver(() => isShown() && show(true)).observe(root, { attributeFilter: ["data-image"] });

  return { begin, update, isShown };
}

async function readPixels(uri) {
  const image = await decodeImage(uri);
  const pen = new OffscreenCanvas(image.width, image.height).getContext("2d");
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, image.width, image.height).data;
}
