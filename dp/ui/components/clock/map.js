// The map of a comparison: the path of each variant's predictions among the images of the first one's model.
function createVariantMap({ root, server, runs, select }) {
  const $ = (selector) => root.querySelector(selector);
  const [toggle, panel, summary, canvas] = [$(".map-toggle"), $(".map-panel"), $(".map-summary"), $(".map-panel canvas")];
  const view = createMapView({ root, canvas });
  let known = { ids: "" }; // the answer about runs with these ids
  let isAsking = false;
  let row = null; // of the image that is selected in all variants
  let hovered = null; // [variant, row] under the pointer

  const isOpen = () => toggle.getAttribute("aria-expanded") === "true";
  const idsOf = (all) => all.map(({ id }) => id).join();

  function update() {
    const all = runs();
    const isReady = all.length > 0 && all.every(({ id, isRecalled }) => id && isRecalled);
    toggle.hidden = !all.length || all.some(({ id }) => !id); // recorded runs have none
    panel.hidden = !isOpen() || toggle.hidden;
    if (panel.hidden) return;
    if (!isReady) return say("Available when all runs have finished.");
    if (known.ids !== idsOf(all)) return void load(all);
    if (known.problem) return say(known.problem);
    draw();
  }

  function say(text) {
    summary.textContent = text;
    canvas.hidden = true;
    delete root.dataset.map;
  }

  async function load(all) {
    if (isAsking) return;
    isAsking = true;
    say("Computing the map…");
    const answer = (await server.map({ runs: all.map(({ id }) => id) })) || { problem: "The server no longer has these runs." };
    if (answer.sheet) answer.image = await decodeImage(answer.sheet);
    [isAsking, known] = [false, { ...answer, ids: idsOf(all) }];
    update();
  }

  // The paths of the selected image, or of all images, in the colors of the variants.
  function paths() {
    return runs().flatMap(({ color, step, label }, variant) => {
      const { paths: own = [], steps = [] } = known.variants[variant] || {};
      const at = Math.max(steps.findLastIndex((one) => one <= step()), 0);
      return own
        .map((places, image) => ({ places, at, color, label, image, variant }))
        .filter(({ image }) => row === null || image === row)
        .map((path) => {
          const isFocus = hovered !== null && hovered.join() === `${path.variant},${path.image}`;
          return { ...path, isFocus, opacity: isFocus || hovered === null ? 0.85 : 0.15 };
        });
    });
  }

  function draw() {
    canvas.hidden = false;
    const drawn = paths();
    view.draw(known, drawn);
    const focus = drawn.find((path) => path.isFocus);
    const which = row === null ? "each image" : `image ${row + 1}`;
    const about = `The colors are those of the variants, the lines the paths of ${which}. Click an image to follow it alone.`;
    summary.textContent = focus ? `${focus.label}, image ${focus.image + 1}.` : `${view.describe(known)} ${about}`;
    canvas.setAttribute("aria-label", `Map of ${known.places.length} images and the paths of ${drawn.length} predictions`);
    root.dataset.map = `${drawn.length}/${row ?? "all"}`;
  }

  function point(event) {
    const found = event && known.variants ? view.pathAt(event, paths()) : -1;
    const path = found < 0 ? null : paths()[found];
    if (String(hovered) === String(path && [path.variant, path.image])) return;
    hovered = path && [path.variant, path.image];
    runs().forEach(({ player }, i) => player.classList.toggle("hinted", path?.variant === i));
    draw();
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", () => known.variants && point(null));
  canvas.addEventListener("click", () => hovered && select(hovered[1]));
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-expanded", String(!isOpen()));
    update();
  });
  new ResizeObserver(() => isOpen() && update()).observe(panel);

  return {
    update,
    selectImage(image) {
      row = image;
      update();
    },
  };
}
