// The map: the model's images on the two axes along which they differ most, and the path of each prediction among them.
function createMap({ root, state, server, panes, select, isAvailable, isWalking }) {
  const $ = (selector) => root.querySelector(selector);
  const [toggle, panel, summary, canvas, outline] = [$(".map-toggle"), $(".map-panel"), $(".map-summary"), $(".map-panel canvas"), $(".outline")];
  const view = createMapView({ root, canvas });
  let known = { run: null }; // the answer about a run
  let isAsking = false;
  let hovered = null; // the image under the pointer, here or on its tile

  const isOpen = () => toggle.getAttribute("aria-expanded") === "true";

  function update() {
    toggle.hidden = !isAvailable() || isWalking();
    panel.hidden = !isOpen() || toggle.hidden;
    if (panel.hidden) return point(null);
    const { run } = state;
    if (!run.isRecalled) return say("Available when the run has finished.");
    if (known.run !== run) return void load(run);
    if (known.problem) return say(known.problem);
    draw();
  }

  function say(text) {
    summary.textContent = text;
    canvas.hidden = true;
    delete root.dataset.map;
  }

  async function load(run) {
    if (isAsking) return;
    isAsking = true;
    say("Computing the map…");
    const answer = (await server.map({ run: run.id })) || { problem: "The server no longer has this run." };
    if (answer.sheet) answer.image = await decodeImage(answer.sheet);
    [isAsking, known] = [false, { ...answer, run }];
    update();
  }

  const shownStep = () => Number(root.dataset.hovered || state.run.frames[state.position]?.index);
  const focus = () => hovered ?? state.selected?.row ?? null;

  function paths() {
    const at = Math.max(known.steps.findLastIndex((step) => step <= shownStep()), 0);
    const opacity = (i) => (focus() === null ? 0.8 : i === focus() ? 1 : 0.15);
    return known.paths.map((places, i) => ({
      places,
      at,
      color: `hsl(${(360 * i) / known.paths.length} 75% 50%)`,
      opacity: opacity(i),
      isFocus: i === focus(),
    }));
  }

  function draw() {
    canvas.hidden = false;
    view.draw(known, paths());
    const step = known.steps.findLast((one) => one <= shownStep()) ?? known.steps[0];
    summary.textContent = `${view.describe(known)} Each colored dot is a prediction at step ${step}, its line the way there.`;
    canvas.setAttribute("aria-label", `Map of ${known.places.length} images and ${known.paths.length} predictions at step ${step}`);
    root.dataset.map = `${step}/${focus() ?? "all"}`;
  }

  // ---- the pointer: on the map, on a tile

  function point(row) {
    if (row === hovered) return;
    hovered = row;
    outline.hidden = row === null || Boolean(state.selected);
    if (row !== null) frameTile(row);
    if (!panel.hidden && known.run === state.run && !known.problem) draw();
  }

  function frameTile(row) {
    const columns = state.run.columns();
    const above = (columns - Math.ceil(state.run.images / columns)) / 2; // the grid is centered in the pane
    const [left, top] = [row % columns, Math.floor(row / columns) + above].map((place) => `${(100 * place) / columns}%`);
    Object.assign(outline.style, { left, top, width: `${100 / columns}%`, aspectRatio: 1 });
  }

  const imageAt = (event) => {
    const found = known.paths ? view.pathAt(event, paths()) : -1;
    return found < 0 ? null : found;
  };

  canvas.addEventListener("pointermove", (event) => point(imageAt(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const row = imageAt(event);
    if (row !== null) select(row);
  });
  for (const pane of Object.values(panes.canvases)) {
    pane.addEventListener("pointermove", (event) => {
      if (panel.hidden || state.selected) return;
      const { run } = state;
      const row = tileAt(event, pane, run.columns(), Math.ceil(run.images / run.columns()));
      point(row >= 0 && row < run.images ? row : null);
    });
    pane.addEventListener("pointerleave", () => point(null));
  }
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-expanded", String(!isOpen()));
    update();
  });
  new ResizeObserver(() => isOpen() && update()).observe(panel);
  new MutationObserver(update).observe(root, { attributeFilter: ["data-step", "data-image", "data-kept", "data-run", "data-hovered"] });
}
