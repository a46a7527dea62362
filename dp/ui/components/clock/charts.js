// Charts of all variants: log-SNR and the change of the prediction against the progress of each run, and the distances of
// the table against the number of steps. A dot marks where each variant stands. A click goes to a place in the runs.
const VARIANT_COLORS = ["#6366f1", "#d97706", "#059669", "#db2777", "#0ea5e9", "#78716c"];

function createVariantCharts({ root, goTo }) {
  const LOWEST_SNR = -10; // what is below is drawn at the edge
  const $ = (selector) => root.querySelector(selector);
  const names = { snr: "log-SNR", change: "Change of the prediction" };
  const charts = Object.entries(names).map(([key, name]) => ({ name, canvas: $(`.${key} canvas`), reading: $(`.${key} .reading`), hovered: null }));
  const [snr, change] = charts;
  let runs = []; // in the order of the page: { color, points: [{ share, log_snr, change }], shown(): the place of the one shown }
  let table = { rows: [], isPairs: false };

  function draw() {
    $(".charts").hidden = !runs.length;
    const signed = (value) => String(value).replace("-", "−");
    const levels = runs.flatMap((run) => run.points.map((point) => Math.max(point.log_snr, LOWEST_SNR)));
    const range = [Math.min(-2, ...levels), Math.max(2, ...levels)];
    drawLines(snr, { y: range }, roundTicks(...range, 4), signed, (point) => Math.max(point.log_snr, LOWEST_SNR), ({ log_snr }) => signed(log_snr.toFixed(1)));
    const changes = runs.flatMap((run) => run.points.map((point) => point.change).filter(Boolean));
    const bounds = [1e-3, Math.max(0.1, ...changes)];
    drawLines(change, { y: bounds, isLog: true }, roundLogTicks(...bounds, 4), String, (point) => point.change, (point) => point.change.toFixed(3));
    drawDistances(table);
  }

  function drawLines(chart, ranges, yTicks, format, valueOf, toText) {
    const fitted = fitCanvas(chart.canvas);
    if (!fitted) return;
    chart.scales = createScales(fitted, { x: [0, 100], ...ranges });
    const { x, y } = chart.scales;
    drawAxes(fitted, root, chart.scales, { xTicks: [0, 20, 40, 60, 80], yTicks, xName: "% of the run", format });
    const [read, ends] = [[], []];
    for (const { player, color, points, shown } of runs) {
      const drawn = points.filter((point) => Number.isFinite(valueOf(point)));
      drawSeries(fitted.pen, color, drawn.map((point) => [x(100 * point.share), y(valueOf(point))]));
      if (drawn.length) ends.push(`${player.ariaLabel}, ${toText(drawn[0])} to ${toText(drawn.at(-1))}`);
      const at = chart.hovered === null ? points[shown()] : drawn.findLast((point) => 100 * point.share <= chart.hovered);
      if (!at || !Number.isFinite(valueOf(at))) continue;
      drawDot(fitted.pen, x(100 * at.share), y(valueOf(at)));
      read.push(marked(toText(at), color));
    }
    chart.reading.replaceChildren(chart.hovered === null ? "" : `${Math.round(chart.hovered)}%: `, ...read);
    chart.canvas.setAttribute("aria-label", `${chart.name}, from beginning to end. ${ends.join("; ")}`);
  }

  // Pairs are two series: step k of a long run, and a run of k steps. The longest run, at distance 0, has no point on a
  // logarithmic axis.
  function drawDistances({ rows, isPairs }) {
    const all = rows.map(([, steps, , far], i) => ({
      steps: Number(steps),
      far: Number(far),
      series: isPairs ? i % 2 : 0,
      color: VARIANT_COLORS[isPairs ? i % 2 : i],
    }));
    const points = all.filter(({ far }) => far > 0);
    const steps = [...new Set(points.map((point) => point.steps))].sort((a, b) => a - b);
    $(".distances").hidden = steps.length < 2;
    const fitted = steps.length > 1 && fitCanvas($(".distances canvas"));
    if (!fitted) return;
    const fars = points.map((point) => point.far);
    const y = [Math.min(...fars) / 1.5, Math.max(...fars) * 1.5];
    const [first, last] = [Math.log(steps[0]), Math.log(steps.at(-1))];
    const scales = createScales(fitted, { x: [first, last + (last - first) / 10], y, isLog: true }); // with room for the name
    const x = (value) => scales.x(Math.log(value));
    drawAxes(fitted, root, { ...scales, x }, { xTicks: steps, yTicks: roundLogTicks(...y, 4), xName: "steps" });
    for (const series of [0, 1]) {
      const line = points.filter((point) => point.series === series).sort((a, b) => a.steps - b.steps);
      drawSeries(fitted.pen, isPairs ? VARIANT_COLORS[series] : subdued(), line.map((point) => [x(point.steps), scales.y(point.far)]));
      for (const { steps: at, far, color } of line) {
        fitted.pen.fillStyle = color;
        drawDot(fitted.pen, x(at), scales.y(far));
      }
    }
  }

  function marked(text, color) {
    const value = Object.assign(document.createElement("span"), { className: "value", textContent: text });
    const mark = document.createElement("i");
    mark.style.background = color;
    value.prepend(mark);
    return value;
  }

  const subdued = () => getComputedStyle(root).getPropertyValue("--body-text-color-subdued");

  function drawSeries(pen, color, places) {
    [pen.strokeStyle, pen.fillStyle, pen.lineWidth, pen.lineJoin] = [color, color, 2, "round"];
    drawLine(pen, places);
  }

  function drawDot(pen, x, y) {
    pen.beginPath();
    pen.arc(x, y, 3.5, 0, 2 * Math.PI);
    pen.fill();
  }

  for (const chart of charts) {
    const shareAt = (event) => Math.min(Math.max(chart.scales.value(event.offsetX), 0), 100);
    chart.canvas.addEventListener("click", (event) => chart.scales && goTo(shareAt(event) / 100));
    chart.canvas.addEventListener("pointermove", (event) => {
      chart.hovered = chart.scales ? shareAt(event) : null;
      draw();
    });
    chart.canvas.addEventListener("pointerleave", () => {
      chart.hovered = null;
      draw();
    });
  }

  new ResizeObserver(draw).observe(root);

  return {
    showRuns(all) {
      runs = all;
      draw();
    },
    showTable(rows, isPairs) {
      table = { rows, isPairs };
      $(".pair-names").hidden = !isPairs;
      draw();
    },
  };
}
