// The loss against the step: each measurement faint, a running mean strong, and on request one line per range of noise
// levels. The records arrive a few at a time. The pointer reads the values of a step.
function createLossChart({ root, board }) {
  const COLORS = ["#2563eb", "#0891b2", "#16a34a", "#ca8a04", "#ea580c", "#dc2626", "#9333ea", "#db2777"];
  const ENDED_WITHOUT_LOSS = ["failed", "interrupted", "stopped"];
  const $ = (selector) => root.querySelector(selector);
  const canvas = $(".chart");
  let records = []; // by rising step
  let isLogarithmic = true;
  let isByLevel = false;
  let scales = null; // of the last drawing
  let pointer = null; // its x on the canvas

  function clear() {
    records = [];
    draw();
  }

  function add(added) {
    for (const record of added) {
      // A run that resumed from an earlier checkpoint repeats the steps after it.
      if ("event" in record) while (records.length && records.at(-1).step > record.step) records.pop();
      if (Number.isFinite(record.loss)) records.push(record);
    }
    if (added.length) draw();
  }

  // The points [step, loss] of all images, or of a range of noise levels.
  function pointsOf(level) {
    const points = records.map((record) => [record.step, level === null ? record.loss : record.buckets?.[level]]);
    return points.filter(([, loss]) => Number.isFinite(loss));
  }

  // An exponential mean over a fiftieth of the points, without a bias toward the first.
  function smooth(points) {
    const decay = 1 - 1 / Math.max(5, points.length / 50);
    let [sum, weight] = [0, 0];
    return points.map(([step, loss]) => {
      [sum, weight] = [decay * sum + (1 - decay) * loss, decay * weight + 1 - decay];
      return [step, sum / weight];
    });
  }

  // About two points per pixel at most: the lowest and the highest of each stretch.
  function decimate(points, width) {
    const size = Math.ceil(points.length / width);
    if (size < 3) return points;
    const kept = [];
    for (let i = 0; i < points.length; i += size) {
      const stretch = points.slice(i, i + size).sort((a, b) => a[1] - b[1]);
      kept.push(...[stretch[0], stretch.at(-1)].sort((a, b) => a[0] - b[0]));
    }
    return kept;
  }

  function draw() {
    const points = pointsOf(null);
    $(".loss").hidden = !points.length && ENDED_WITHOUT_LOSS.includes(board.facts?.state);
    const fitted = fitCanvas(canvas);
    if (!fitted) return;
    const mean = smooth(points);
    const levels = isByLevel ? Object.keys(records.findLast((record) => record.buckets)?.buckets || {}) : [];
    $(".current-loss").textContent = points.length ? mean.at(-1)[1].toPrecision(3) : "";
    $(".reading").textContent = "";
    $(".by-level").hidden = !records.some((record) => record.buckets);
    canvas.dataset.points = points.length;
    const ends = [points[0], mean.at(-1)].map((point) => point && `${point[1].toPrecision(3)} at step ${formatNumber(point[0])}`);
    canvas.setAttribute("aria-label", points.length ? `The loss: ${ends[0]}, ${ends[1]} on average` : "The loss at each step");
    canvas.dataset.ticks = "";
    drawLegend(levels);
    if (points.length < 2) return drawHint(fitted, points.length ? "one measurement so far" : "The loss appears here.");
    const lines = levels.map((level) => smooth(pointsOf(level)));
    scales = drawScales(fitted, points, [points, mean, ...lines]);
    if (pointer !== null) read(fitted, points, mean);
    drawLines(fitted, scales, points, mean, lines);
  }

  // The values at the measurement nearest to the pointer.
  function read({ pen, height }, points, mean) {
    const at = scales.value(pointer);
    const distance = ([step]) => Math.abs(step - at);
    const nearest = points.reduce((best, point, i) => (distance(point) < distance(points[best]) ? i : best), 0);
    const [step, loss] = points[nearest];
    const x = scales.x(step);
    pen.strokeStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    drawLine(pen, [[x, CHART.top], [x, height - CHART.bottom]]);
    const texts = [`step ${formatNumber(step)}: ${loss.toPrecision(3)}`, `mean ${mean[nearest][1].toPrecision(3)}`];
    $(".reading").textContent = texts.join(", ");
  }

  function drawLegend(levels) {
    const entries = levels.map((level, i) => {
      const entry = createElement("span", "level", level);
      const mark = createElement("i", "", "");
      mark.style.background = COLORS[i % COLORS.length];
      entry.prepend(mark);
      return entry;
    });
    const scale = levels.length ? [createElement("span", "", "t = 0: clean image, t = 1: pure noise")] : [];
    $(".legend").replaceChildren(...scale, ...entries);
  }

  function drawHint({ pen, width, height }, text) {
    pen.font = CHART.font;
    pen.fillStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    pen.textAlign = "center";
    pen.fillText(text, width / 2, height / 2);
  }

  function drawScales(fitted, points, lines) {
    // The first losses of a long run are so high that they would flatten all the others.
    const skipped = points.length < 50 ? 0 : 5;
    const values = lines.flatMap((line) => line.slice(skipped)).map(([, loss]) => Math.max(loss, 1e-9));
    const [lowest, high] = values.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
    const low = isLogarithmic ? Math.min(lowest, high * 0.999) : 0;
    const last = Math.max(records.at(-1).step, 1);
    const created = createScales(fitted, { x: [0, last], y: [low, high], isLog: isLogarithmic });
    const yTicks = isLogarithmic ? roundLogTicks(low, high, 5) : roundTicks(low, high, 5);
    canvas.dataset.ticks = yTicks;
    drawAxes(fitted, root, created, { xTicks: roundTicks(0, last, 5), yTicks, xName: "step" });
    return created;
  }

  function drawLines({ pen, width, height }, { x, y }, points, mean, lines) {
    const line = (values, color, lineWidth, alpha) => {
      [pen.strokeStyle, pen.lineWidth, pen.globalAlpha] = [color, lineWidth, alpha];
      drawLine(pen, decimate(values, width).map(([step, loss]) => [x(step), y(loss)]));
    };
    pen.beginPath();
    pen.rect(CHART.left, 0, width - CHART.left - CHART.right, height - CHART.bottom);
    pen.clip();
    const accent = getComputedStyle(root).getPropertyValue("--color-accent");
    line(points, accent, 1, 0.3);
    lines.forEach((values, i) => line(values, COLORS[i % COLORS.length], 1.5, 1));
    line(mean, accent, 2.5, 1);
  }

  canvas.addEventListener("pointermove", ({ offsetX }) => {
    pointer = offsetX;
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    pointer = null;
    draw();
  });
  $(".log-scale").addEventListener("click", ({ target }) => {
    isLogarithmic = !isLogarithmic;
    target.setAttribute("aria-pressed", isLogarithmic);
    draw();
  });
  $(".by-level").addEventListener("click", ({ target }) => {
    isByLevel = !isByLevel;
    target.setAttribute("aria-pressed", isByLevel);
    draw();
  });
  new ResizeObserver(draw).observe(root);

  return { add, clear };
}
