// Two charts against the step, with a cursor at the frame shown: log-SNR, and how much the prediction changes. A click
// goes to a step, and the pointer reads the values there.
function createCharts({ root, state, goTo }) {
  const CHANGE_COLOR = "#d97706";
  const [LOWEST_SNR, LOWEST_CHANGE] = [-10, 1e-3]; // what is below is drawn at the edge
  const $ = (selector) => root.querySelector(selector);
  const charts = {
    snr: { name: "log-SNR", canvas: $(".snr canvas"), reading: $(".snr .reading"), scales: null, hovered: null },
    change: { name: "Change of the prediction", canvas: $(".change canvas"), reading: $(".change .reading"), scales: null, hovered: null },
  };

  const accent = () => getComputedStyle(root).getPropertyValue("--color-accent");
  const formatSnr = (value) => value.toFixed(1).replace("-", "−");
  const formatChange = (value) => (value < 0.01 ? value.toFixed(4) : value.toFixed(3));

  function draw() {
    const { run } = state;
    const others = Object.keys(run.others);
    $(".others").textContent = others.length ? `Faint: other schedules (${others.join(", ")}).` : "";
    drawSnr(charts.snr, run.curve.length ? run.curve : run.frames.map((frame) => [frame.index, frame.log_snr]));
    drawChange(charts.change, run.frames.slice(1).map((frame) => [frame.index, changeOf(frame)]));
  }

  // Of the selected image, or the mean of all.
  function changeOf({ moved = [] }) {
    const mean = moved.reduce((sum, x) => sum + x, 0) / (moved.length || 1);
    return state.selected ? (moved[state.selected.row] ?? mean) : mean;
  }

  function drawSnr(chart, points) {
    const values = points.map(([step, value]) => [step, Math.max(value, LOWEST_SNR)]);
    const ys = values.map(([, value]) => value);
    const range = [Math.min(-2, ...ys), Math.max(2, ...ys)];
    const ticks = roundTicks(...range, 4);
    const fitted = drawFrame(chart, { y: range }, ticks, (value) => String(value).replace("-", "−"), points.length);
    if (!fitted) return;
    const { pen, width } = fitted;
    pen.fillStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    [pen.textAlign, pen.textBaseline] = ["left", "bottom"];
    if (width > 240) pen.fillText("half signal, half noise", CHART.left + 4, chart.scales.y(0) - 1);
    drawOthers(chart, fitted);
    drawValues(chart, fitted, values, accent(), (step) => `log-SNR ${formatSnr(valueAt(points, step))}`);
  }

  // Faint, as far as they are within the axes.
  function drawOthers({ scales: { x, y } }, { pen, width, height }) {
    pen.save();
    pen.beginPath();
    pen.rect(CHART.left, CHART.top, width - CHART.left - CHART.right, height - CHART.top - CHART.bottom);
    pen.clip();
    [pen.strokeStyle, pen.globalAlpha, pen.lineWidth] = [accent(), 0.4, 1];
    for (const curve of Object.values(state.run.others)) drawLine(pen, curve.map(([step, value]) => [x(step), y(value)]));
    pen.restore();
  }

  function drawChange(chart, points) {
    const high = Math.max(0.1, ...points.map(([, value]) => value));
    const range = [LOWEST_CHANGE, high];
    const fitted = drawFrame(chart, { y: range, isLog: true }, roundLogTicks(...range, 4), String, points.length);
    if (!fitted) return;
    const which = state.selected ? ` (image ${state.selected.row + 1})` : "";
    drawValues(chart, fitted, points, CHANGE_COLOR, (step) => `${formatChange(valueAt(points, step))} RMS${which}`);
  }

  function drawFrame(chart, ranges, yTicks, format, count) {
    const fitted = fitCanvas(chart.canvas);
    if (!fitted) return null;
    const { timesteps } = state.run;
    chart.scales = createScales(fitted, { x: [1, Math.max(timesteps, 2)], ...ranges });
    const xTicks = roundTicks(1, timesteps, 5).filter(Number.isInteger);
    if (count) drawAxes(fitted, root, chart.scales, { xTicks, yTicks, xName: "step", format });
    return count ? fitted : null;
  }

  function drawValues(chart, { pen, height }, points, color, read) {
    const { x, y } = chart.scales;
    const shown = state.run.frames[state.position];
    pen.strokeStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    if (shown) drawLine(pen, [[x(shown.index), CHART.top], [x(shown.index), height - CHART.bottom]]);
    [pen.strokeStyle, pen.fillStyle, pen.lineWidth, pen.lineJoin] = [color, color, 2, "round"];
    drawLine(pen, points.map(([step, value]) => [x(step), y(value)]));
    if (points.length === 1) pen.fillRect(x(points[0][0]) - 2, y(points[0][1]) - 2, 4, 4); // a line needs two
    const [first, last] = [points[0], points.at(-1)].map(([at]) => `at step ${at}, ${read(at)}`);
    chart.canvas.setAttribute("aria-label", `${chart.name}: ${first}; ${last}`);
    const step = chart.hovered ?? shown?.index;
    chart.reading.textContent = step && points.some(([at]) => at === step) ? `step ${step}: ${read(step)}` : "";
  }

  const valueAt = (points, step) => points.find(([at]) => at === step)?.[1] ?? NaN;

  // The kept frame nearest to the pointer.
  function frameAt(chart, event) {
    const { frames } = state.run;
    if (!chart.scales || !frames.length) return -1;
    const distance = (frame) => Math.abs(frame.index - chart.scales.value(event.offsetX));
    return frames.reduce((best, frame, i) => (distance(frame) < distance(frames[best]) ? i : best), 0);
  }

  for (const chart of Object.values(charts)) {
    chart.canvas.addEventListener("click", (event) => {
      const at = frameAt(chart, event);
      if (at >= 0) goTo(at);
    });
    chart.canvas.addEventListener("pointermove", (event) => {
      chart.hovered = state.run.frames[frameAt(chart, event)]?.index ?? null;
      if (chart.hovered) root.dataset.hovered = chart.hovered; // for the map
      draw();
    });
    chart.canvas.addEventListener("pointerleave", () => {
      chart.hovered = null;
      delete root.dataset.hovered;
      draw();
    });
  }
  new ResizeObserver(draw).observe(root);

  return { draw, changeOf };
}
