// The map: the model's images on the two axes along which they differ most, and the path of each prediction among them.
function createMap({ root, state, server, panes, select, isAvailable, isWalking }) {
  const [THUMBNAIL, MARGIN, NEAR] = [26, 22, 14]; // pixels: a landmark, the edge, how near the pointer must be
  const $ = (selector) => root.querySelector(selector);
  const [toggle, panel, summary, canvas, outline] = [$(".map-toggle"), $(".map-panel"), $(".map-summary"), $(".map-panel canvas"), $(".outline")];
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

  // ---- drawing

  // From places to pixels: the images and the paths fill the canvas, with the same scale along both axes.
  function createView(width, height) {
    const all = [...known.places, ...known.paths.flat()];
    const [xs, ys] = [0, 1].map((axis) => all.map((place) => place[axis]));
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = Math.min((width - 2 * MARGIN) / (x1 - x0 || 1), (height - 2 * MARGIN) / (y1 - y0 || 1));
    return ([x, y]) => [width / 2 + scale * (x - (x0 + x1) / 2), height / 2 - scale * (y - (y0 + y1) / 2)];
  }

  const shownStep = () => Number(root.dataset.hovered || state.run.frames[state.position]?.index);
  const shownPlace = () => Math.max(known.steps.findLastIndex((step) => step <= shownStep()), 0);
  const hue = (i) => (360 * i) / known.paths.length;
  const focus = () => hovered ?? state.selected?.row ?? null;

  function draw() {
    canvas.hidden = false;
    const fitted = fitCanvas(canvas);
    if (!fitted) return;
    const { pen, width, height } = fitted;
    const [view, k] = [createView(width, height), shownPlace()];
    drawImages(pen, view);
    known.paths.forEach((path, i) => i !== focus() && drawPath(pen, view, path, i, k, focus() === null ? 0.8 : 0.15));
    if (focus() !== null && known.paths[focus()]) drawPath(pen, view, known.paths[focus()], focus(), k, 1);
    const percent = Math.round(100 * (known.shares[0] + known.shares[1]));
    const about = `The small images are ${known.landmarks.length} that the model learned from, the gray dots ${known.places.length - known.landmarks.length} more. Each colored dot is a prediction at step ${known.steps[k]}, its line the way there.`;
    summary.textContent = `${about} The two axes hold ${percent}% of the differences between the images, so neighbors on the map may still look different.`;
    canvas.setAttribute("aria-label", `Map of ${known.places.length} images and ${known.paths.length} predictions at step ${known.steps[k]}`);
    root.dataset.map = `${known.steps[k]}/${focus() ?? "all"}`;
  }

  function drawImages(pen, view) {
    const { image, columns, landmarks, places } = known;
    const side = image.width / Math.min(columns, landmarks.length);
    pen.fillStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    pen.globalAlpha = 0.5;
    for (const place of places) {
      const [x, y] = view(place);
      pen.fillRect(x - 1, y - 1, 2, 2);
    }
    [pen.globalAlpha, pen.imageSmoothingEnabled] = [0.75, true];
    landmarks.forEach((l, i) => {
      const [x, y] = view(places[l]);
      const [sx, sy] = tilePosition(i, columns, side);
      pen.drawImage(image, sx, sy, side, side, x - THUMBNAIL / 2, y - THUMBNAIL / 2, THUMBNAIL, THUMBNAIL);
    });
    pen.globalAlpha = 1;
  }

  // As far as the step that is shown solid, the rest faint.
  function drawPath(pen, view, path, i, k, opacity) {
    const points = path.map(view);
    [pen.lineWidth, pen.lineJoin] = [opacity === 1 ? 2.5 : 1.5, "round"];
    pen.strokeStyle = `hsl(${hue(i)} 75% 50% / ${0.35 * opacity})`;
    drawLine(pen, points.slice(k));
    pen.strokeStyle = pen.fillStyle = `hsl(${hue(i)} 75% 50% / ${opacity})`;
    drawLine(pen, points.slice(0, k + 1));
    pen.beginPath();
    pen.arc(...points[k], opacity === 1 ? 6 : 4, 0, 2 * Math.PI);
    pen.fill();
    [pen.strokeStyle, pen.lineWidth] = [`rgb(255 255 255 / ${opacity})`, 1.5];
    pen.stroke();
  }

  // ---- the pointer: on the map, on a tile

  function point(row) {
    if (row === hovered) return;
    hovered = row;
    const columns = state.run.columns();
    outline.hidden = row === null || Boolean(state.selected);
    Object.assign(outline.style, { width: `${100 / columns}%`, aspectRatio: 1 });
    if (row !== null) {
      const lines = Math.ceil(state.run.images / columns);
      const above = (columns - lines) / 2; // the grid is centered in the pane
      Object.assign(outline.style, { left: `${(100 * (row % columns)) / columns}%`, top: `${(100 * (Math.floor(row / columns) + above)) / columns}%` });
    }
    if (!panel.hidden && known.run === state.run && !known.problem) draw();
  }

  function imageAt(event) {
    const view = createView(canvas.clientWidth, canvas.clientHeight);
    const k = shownPlace();
    const distances = known.paths.map((path) => Math.hypot(...view(path[k]).map((value, axis) => value - [event.offsetX, event.offsetY][axis])));
    const nearest = distances.indexOf(Math.min(...distances));
    return distances[nearest] < NEAR ? nearest : null;
  }

  canvas.addEventListener("pointermove", (event) => known.paths && point(imageAt(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const row = known.paths ? imageAt(event) : null;
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
