// Two charts against the step, with a cursor at the frame shown: log-SNR, and how much the prediction changes.
function createCharts({ root, state, goTo }) {
  const MARGIN = 6; // pixels on each side
  const CHANGE_COLOR = "#d97706";
  const canvases = { snr: root.querySelector(".snr canvas"), change: root.querySelector(".change canvas") };

  function draw() {
    const { run, selected } = state;
    const changes = run.frames.slice(1).map((frame) => {
      const values = frame.moved || [];
      const mean = values.reduce((sum, x) => sum + x, 0) / (values.length || 1);
      return [frame.index, selected ? (values[selected.row] ?? mean) : mean];
    });
    const snr = run.curve.length ? run.curve : run.frames.map((frame) => [frame.index, frame.log_snr]);
    root.querySelector(".chart-image").textContent = selected ? ` (image ${selected.row + 1})` : "";
    drawChart(canvases.snr, snr, getComputedStyle(root).getPropertyValue("--color-accent"), true);
    drawChart(canvases.change, changes, CHANGE_COLOR, false);
  }

  function drawChart(canvas, points, color, hasZeroLine) {
    const fitted = fitCanvas(canvas);
    if (!fitted) return;
    const { pen, width, height } = fitted;
    const [style, ys] = [getComputedStyle(root), points.map(([, y]) => y)];
    const [low, high] = [Math.min(0, ...ys), Math.max(1e-6, ...ys)];
    const x = (step) => MARGIN + ((width - 2 * MARGIN) * (step - 1)) / Math.max(state.run.timesteps - 1, 1);
    const y = (value) => height - MARGIN - ((height - 2 * MARGIN) * (value - low)) / (high - low);
    pen.strokeStyle = style.getPropertyValue("--border-color-primary");
    if (hasZeroLine) drawLine(pen, [[MARGIN, y(0)], [width - MARGIN, y(0)]]);
    const shown = state.run.frames[state.position];
    pen.strokeStyle = style.getPropertyValue("--body-text-color-subdued");
    if (shown) drawLine(pen, [[x(shown.index), 0], [x(shown.index), height]]);
    [pen.strokeStyle, pen.lineWidth, pen.lineJoin] = [color, 2, "round"];
    drawLine(pen, points.map(([step, value]) => [x(step), y(value)]));
  }

  for (const canvas of Object.values(canvases))
    canvas.addEventListener("click", (event) => {
      const { frames, timesteps } = state.run;
      const fraction = (event.offsetX - MARGIN) / Math.max(canvas.clientWidth - 2 * MARGIN, 1);
      const distance = (frame) => Math.abs(frame.index - 1 - fraction * (timesteps - 1));
      goTo(frames.reduce((best, frame, i) => (distance(frame) < distance(frames[best]) ? i : best), 0));
    });
  new ResizeObserver(draw).observe(root);

  return { draw };
}
