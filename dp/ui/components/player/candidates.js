// What could it still become? The training images that are still possible at the step shown: for the selected image the
// likeliest of them, for all images when each was decided. The server computes it on demand, once for each run.
function createCandidates({ root, state, server, goTo, select, isAvailable, isWalking }) {
  const DECIDED = 2; // with fewer candidates, an image is decided
  const COPY = 0.03; // RMS below which a result is called a copy: 8 of 255 gray levels
  const COLOR = "#059669";
  const MINDS = 20; // steps whose likeliest images are shown
  const STACK = 6; // images at each of these steps
  const $ = (selector) => root.querySelector(selector);
  const [toggle, panel, summary] = [$(".candidates-toggle"), $(".candidates-panel"), $(".candidates-summary")];
  const chart = { canvas: $(".possible canvas"), reading: $(".possible .reading"), scales: null, hovered: null };
  const marks = $(".marks");
  let known = { run: null }; // the answers about a run: `all`, and by row those about single images
  let pending = null;
  let shown = null; // the answer on the page, and `at`, the place of the image in it, -1 for all

  const isOpen = () => toggle.getAttribute("aria-expanded") === "true";
  const frame = () => state.run.frames[state.position];

  function update() {
    const { run, selected } = state;
    toggle.hidden = !isAvailable() || isWalking();
    panel.hidden = !isOpen() || toggle.hidden;
    if (panel.hidden) return clear("");
    if (!run.isRecalled) return clear("Available when the run has finished.");
    if (known.run !== run) known = { run };
    const [row, ofRow] = [selected ? selected.row : null, selected && known[selected.row]];
    const answer = ofRow || known.all;
    if (!answer || (answer.problem && selected && !ofRow)) return load(answer ? row : null);
    if (answer.problem) return clear(answer.problem);
    show(answer, selected ? answer.rows.indexOf(row) : -1);
  }

  async function load(row) {
    const { run } = state;
    if (pending?.run === run && pending.row === row) return;
    clear("Computing which training images are possible…");
    const asked = (pending = { run, row });
    const answer = (await server.candidates({ run: run.id, row })) || { problem: "The server no longer has this run." };
    if (answer.sheet) [answer.image, answer.resultImage] = [await decodeImage(answer.sheet), await decodeImage(answer.results)];
    if (asked !== pending) return;
    pending = null;
    if (known.run === run) known[row ?? "all"] = answer;
    update();
  }

  function clear(text) {
    summary.textContent = text;
    for (const part of panel.querySelectorAll(".part")) part.hidden = true;
    marks.replaceChildren();
    shown = null;
    delete root.dataset.candidates;
  }

  // ---- the answer at the step that is shown

  function show(answer, at) {
    const isNew = shown?.answer !== answer || shown.at !== at;
    shown = { answer, at };
    const k = answer.steps.findLastIndex((step) => step <= frame().index);
    for (const part of panel.querySelectorAll(".part")) part.hidden = part.classList.contains("of-one") && at < 0;
    summary.textContent = at < 0 ? describeAll(answer) : describeOne(answer, at, Math.max(k, 0));
    if (at >= 0) showLikeliest(answer, at, Math.max(k, 0));
    if (isNew) [showMinds(answer, at), showPairs(answer, at)];
    markMind();
    showMarks(answer, at);
    drawChart();
    root.dataset.candidates = `${frame().index}/${at < 0 ? "all" : answer.rows[at]}`;
  }

  const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const isLeft = (count) => count < 1.05; // the others have next to no weight
  const round = (count) => (isLeft(count) ? "1" : count < DECIDED ? "fewer than 2" : String(Math.round(count)));

  function describeAll({ decided, rows, total }) {
    const settled = decided.filter((step) => step !== null);
    const open = rows.length - settled.length;
    const when = settled.length ? `Half of the images are decided by step ${median(settled)} (✓ and the step, on each image): one of the ${total} training images is then likelier than all others together. ` : "";
    const rest = open ? `${open} of ${rows.length} remain undecided. ` : "";
    return `${when}${rest}Click an image to see its candidates.`;
  }

  function describeOne({ counts, decided, settled, total, steps }, at, k) {
    const count = counts[at][k];
    const several = count < DECIDED ? `one of the ${total} training images is likelier than all others together` : `about ${round(count)} of the ${total} training images are still possible`;
    const left = `At step ${steps[k]}, ${isLeft(count) ? `one of the ${total} training images is left` : several}.`;
    const when = decided[at] === null ? "It is never decided." : `It is decided at step ${decided[at]}.`;
    const [coarse, fine] = settled[at];
    return `${left} ${when} In the prediction, the large shapes are near the result from step ${coarse} on, the details from step ${fine}.`;
  }

  // A canvas with one training image.
  function thumbnail({ image, columns }, tile) {
    const side = image.width / columns;
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    canvas.getContext("2d").drawImage(image, ...tilePosition(tile, columns, side), side, side, 0, 0, side, side);
    return canvas;
  }

  // The same, paler where it is less likely than the likeliest at this step.
  function weighted(answer, at, k, i) {
    const canvas = thumbnail(answer, answer.likeliest[at][k][i]);
    canvas.style.opacity = 0.25 + 0.75 * Math.min(1, answer.weights[at][k][i] / answer.weights[at][k][0]);
    return canvas;
  }

  function showLikeliest(answer, at, k) {
    const items = answer.likeliest[at][k].map((_, i) => {
      const weight = answer.weights[at][k][i];
      const [item, percent] = [document.createElement("li"), document.createElement("span")];
      percent.textContent = weight < 0.001 ? "< 0.1%" : `${(100 * weight).toFixed(1)}%`;
      const bar = Object.assign(document.createElement("i"), { className: "weight" });
      bar.style.width = `${100 * weight}%`;
      item.append(weighted(answer, at, k, i), bar, percent);
      return item;
    });
    $(".likeliest").replaceChildren(...items);
  }

  // The likeliest training images at each step: how few are left, and changes of mind.
  function showMinds(answer, at) {
    if (at < 0) return;
    const { steps, likeliest, counts, decided } = answer;
    const many = Math.min(MINDS, steps.length);
    const places = Array.from({ length: many }, (_, i) => Math.round((i * (steps.length - 1)) / Math.max(many - 1, 1)));
    const best = likeliest[at].map((tiles) => tiles[0]);
    const changes = best.filter((tile, k) => k && tile !== best[k - 1]).length;
    $(".minds-title").textContent = `Below each step, the training images it could still become. The likeliest, on top, changes ${changes === 1 ? "once" : `${changes} times`}. ✓: decided.`;
    $(".minds").replaceChildren(...places.map((k) => {
      const [item, button] = [document.createElement("li"), Object.assign(document.createElement("button"), { type: "button" })];
      const isDecided = decided[at] !== null && steps[k] >= decided[at];
      const possible = isDecided ? 1 : Math.round(counts[at][k]);
      const stack = Array.from({ length: Math.min(possible, STACK, likeliest[at][k].length) }, (_, i) => weighted(answer, at, k, i));
      const rest = isDecided ? "✓" : possible > stack.length ? `+${possible - stack.length}` : "";
      button.append(steps[k], ...stack, rest);
      button.dataset.step = steps[k];
      button.setAttribute("aria-label", `Step ${steps[k]}: ${isDecided ? "decided" : `${possible} possible`}`);
      button.addEventListener("click", () => goToStep(steps[k]));
      item.append(button);
      return item;
    }));
  }

  function markMind() {
    const buttons = [...$(".minds").querySelectorAll("button")];
    const current = buttons.findLast((button) => Number(button.dataset.step) <= frame().index);
    for (const button of buttons) button.ariaCurrent = button === current ? "step" : null;
  }

  // Each result above the training image that is nearest to it.
  function showPairs(answer, at) {
    const places = at < 0 ? answer.rows.map((_, i) => i) : [at];
    $(".pairs").replaceChildren(...places.map((i) => {
      const [item, button] = [document.createElement("li"), Object.assign(document.createElement("button"), { type: "button" })];
      const far = document.createElement("span");
      far.textContent = answer.distances[i].toFixed(3);
      item.classList.toggle("copy", answer.distances[i] < COPY);
      button.append(thumbnail({ image: answer.resultImage, columns: answer.columns }, i), thumbnail(answer, answer.nearest[i]), far);
      button.setAttribute("aria-label", `Image ${answer.rows[i] + 1}: ${far.textContent} from its nearest training image${item.className && ", a copy"}`);
      button.addEventListener("click", () => select(answer.rows[i]));
      item.append(button);
      return item;
    }));
  }

  // On the tile of each image, the step that decided it, once it is reached.
  function showMarks({ rows, decided }, at) {
    const columns = state.run.columns();
    marks.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    marks.style.aspectRatio = `${columns} / ${Math.ceil(rows.length / columns)}`;
    const isReached = (i) => decided[i] !== null && decided[i] <= frame().index;
    const every = at < 0 ? rows.map((_, i) => Object.assign(document.createElement("i"), { textContent: isReached(i) ? `✓${decided[i]}` : "" })) : [];
    marks.replaceChildren(...every);
  }

  // ---- how many are possible, against the step

  function drawChart() {
    const fitted = shown && fitCanvas(chart.canvas);
    if (!fitted) return;
    const { answer, at } = shown;
    const { pen, height, width } = fitted;
    const { timesteps } = state.run;
    const range = [1, Math.max(answer.total, 2)];
    chart.scales = createScales(fitted, { x: [1, Math.max(timesteps, 2)], y: range, isLog: true });
    const { x, y } = chart.scales;
    drawAxes(fitted, root, chart.scales, { xTicks: roundTicks(1, timesteps, 5).filter(Number.isInteger), yTicks: [1, 10, answer.total].filter((tick, i, all) => !i || tick > 2 * all[i - 1]), xName: "step" });
    pen.strokeStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    drawLine(pen, [[x(frame().index), CHART.top], [x(frame().index), height - CHART.bottom]]);
    pen.setLineDash([3, 3]);
    drawLine(pen, [[CHART.left, y(2)], [width - CHART.right, y(2)]]);
    pen.setLineDash([]);
    [pen.textAlign, pen.textBaseline] = ["left", "bottom"];
    pen.fillText("below: decided", CHART.left + 4, y(2) - 1);
    [pen.strokeStyle, pen.fillStyle, pen.lineJoin] = [COLOR, COLOR, "round"];
    const curves = at < 0 ? answer.counts : [answer.counts[at]];
    [pen.lineWidth, pen.globalAlpha] = at < 0 ? [1, 0.35] : [2, 1];
    for (const curve of curves) drawLine(pen, curve.map((count, k) => [x(answer.steps[k]), y(count)]));
    [pen.lineWidth, pen.globalAlpha] = [2, 1];
    const middle = answer.steps.map((_, k) => median(curves.map((curve) => curve[k])));
    if (at < 0) drawLine(pen, middle.map((count, k) => [x(answer.steps[k]), y(count)]));
    if (at >= 0 && answer.decided[at] !== null) {
      const count = answer.counts[at][answer.steps.indexOf(answer.decided[at])];
      drawDecided(pen, x(answer.decided[at]), y(count), y(DECIDED), width);
    }
    readChart(middle, at);
  }

  function drawDecided(pen, at, height, line, width) {
    pen.beginPath();
    pen.arc(at, height, 4, 0, 2 * Math.PI);
    pen.fill();
    const isLate = at > width - 100; // no room for the words on the right
    [pen.textAlign, pen.textBaseline] = [isLate ? "right" : "left", "bottom"];
    pen.fillText("decided", at + (isLate ? -8 : 8), line - 2);
  }

  function readChart(counts, at) {
    const { steps } = shown.answer;
    const step = chart.hovered ?? frame().index;
    const k = steps.findLastIndex((one) => one <= step);
    chart.reading.textContent = k < 0 ? "" : `step ${steps[k]}: ${round(counts[k])}${at < 0 ? " (median)" : ""}`;
    const ends = [0, steps.length - 1].map((i) => `at step ${steps[i]}, ${round(counts[i])}`);
    chart.canvas.setAttribute("aria-label", `Possible training images: ${ends.join("; ")}`);
  }

  function goToStep(step) {
    const { frames } = state.run;
    goTo(Math.max(frames.findLastIndex((one) => one.index <= step), 0));
  }

  chart.canvas.addEventListener("click", (event) => chart.scales && goToStep(Math.round(chart.scales.value(event.offsetX))));
  for (const [name, isOver] of [["pointermove", true], ["pointerleave", false]])
    chart.canvas.addEventListener(name, (event) => {
      chart.hovered = isOver && chart.scales ? Math.round(chart.scales.value(event.offsetX)) : null;
      if (shown) drawChart();
    });
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-expanded", String(!isOpen()));
    update();
  });
  new ResizeObserver(drawChart).observe(panel);
  new MutationObserver(update).observe(root, { attributeFilter: ["data-step", "data-image", "data-kept", "data-run"] });
}
