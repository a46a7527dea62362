// The loss on a canvas, from records that come a few at a time: every point faint, a running mean strong, and if asked
// for a line for each range of noise levels.
const COLOURS = ["#2563eb", "#0891b2", "#16a34a", "#ca8a04", "#ea580c", "#dc2626", "#9333ea", "#db2777"];
let records = []; // of training, by step
let logScale = true;
let byLevel = false;

function clearChart() {
  records = [];
  drawChart();
}

function plot(news) {
  for (const record of news) {
    // A run that went on from an earlier checkpoint does the steps after it again.
    if ("event" in record) while (records.length && records.at(-1).step > record.step) records.pop();
    if (Number.isFinite(record.loss)) records.push(record);
  }
  if (news.length) drawChart();
}

// An exponential mean over a fiftieth of what there is, without the pull towards its beginning.
function smooth(points) {
  const keep = 1 - 1 / Math.max(5, points.length / 50);
  let [sum, weight] = [0, 0];
  return points.map(([step, loss]) => {
    [sum, weight] = [keep * sum + (1 - keep) * loss, keep * weight + 1 - keep];
    return [step, sum / weight];
  });
}

// At most about two points for each pixel: the lowest and highest between.
function thinned(points, across) {
  const size = Math.ceil(points.length / across);
  if (size < 3) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += size) {
    const some = points.slice(i, i + size).sort((a, b) => a[1] - b[1]);
    kept.push(...[some[0], some.at(-1)].sort((a, b) => a[0] - b[0]));
  }
  return kept;
}

const of = (key) =>
  records.map((record) => [record.step, key === null ? record.loss : record.buckets?.[key]]).filter(([, loss]) => Number.isFinite(loss));

function drawChart() {
  const canvas = $(".chart");
  const raw = of(null);
  $(".losses").hidden = !raw.length && ["failed", "lost", "stopped"].includes(facts?.state);
  const [across, down] = [canvas.clientWidth, canvas.clientHeight];
  if (!across) return;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(across * ratio), Math.round(down * ratio)];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(root);
  const ink = style.getPropertyValue("--body-text-color-subdued");
  pen.font = "11px system-ui";
  $(".now").textContent = raw.length ? smooth(raw).at(-1)[1].toPrecision(3) : "";
  canvas.dataset.points = raw.length;
  const levels = byLevel ? Object.keys(records.findLast((record) => record.buckets)?.buckets || {}) : [];
  const scaleOfNoise = levels.length ? [part("", "t = 0: clean image, t = 1: pure noise")] : [];
  $(".legend").replaceChildren(...scaleOfNoise, ...levels.map((level, i) => legend(level, COLOURS[i % COLOURS.length])));
  $(".levels").hidden = !records.some((record) => record.buckets);
  if (raw.length < 2) {
    pen.fillStyle = ink;
    pen.textAlign = "center";
    pen.fillText(raw.length ? "one measurement so far" : "The loss appears here.", across / 2, down / 2);
    return;
  }
  const lines = levels.map((level) => smooth(of(level)));
  const scale = (loss) => (logScale ? Math.log10(Math.max(loss, 1e-9)) : loss);
  // The heights of a long run's very first steps would press all the rest against the ground.
  const settled = (line) => line.slice(raw.length < 50 ? 0 : 5);
  const seen = [raw, smooth(raw), ...lines].flatMap(settled).map(([, loss]) => scale(loss));
  let [low, high] = seen.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
  if (!logScale) low = 0;
  if (high - low < 1e-9) high = low + 1e-9;
  const [left, bottom] = [54, 18];
  const last = Math.max(records.at(-1).step, 1);
  const x = (step) => left + ((across - left - 8) * step) / last;
  const y = (loss) => Math.max(4, down - bottom - ((down - bottom - 10) * (scale(loss) - low)) / (high - low));

  pen.fillStyle = ink;
  pen.strokeStyle = style.getPropertyValue("--border-color-primary");
  for (let i = 0; i <= 3; i++) {
    const value = low + ((high - low) * i) / 3;
    const loss = logScale ? 10 ** value : value;
    pen.textAlign = "right";
    pen.fillText(loss.toPrecision(3), left - 6, y(loss) + 4);
    pen.beginPath();
    pen.moveTo(left, y(loss));
    pen.lineTo(across - 8, y(loss));
    pen.stroke();
  }
  for (const share of [0, 0.5, 1]) {
    pen.textAlign = ["left", "center", "right"][share * 2];
    pen.fillText(number(Math.round(last * share)), x(last * share), down - 4);
  }
  const line = (points, colour, width, alpha) => {
    [pen.strokeStyle, pen.lineWidth, pen.globalAlpha] = [colour, width, alpha];
    pen.beginPath();
    thinned(points, across).forEach(([step, loss], i) => (i ? pen.lineTo(x(step), y(loss)) : pen.moveTo(x(step), y(loss))));
    pen.stroke();
    pen.globalAlpha = 1;
  };
  pen.save();
  pen.beginPath();
  pen.rect(left, 0, across - left - 6, down - bottom + 2);
  pen.clip();
  const accent = style.getPropertyValue("--color-accent");
  line(raw, accent, 1, 0.3);
  lines.forEach((points, i) => line(points, COLOURS[i % COLOURS.length], 1.5, 1));
  line(smooth(raw), accent, 2.5, 1);
  pen.restore();
}

function legend(words, colour) {
  const made = part("level", words);
  const mark = document.createElement("i");
  mark.style.background = colour;
  made.prepend(mark);
  return made;
}

$(".log").addEventListener("click", ({ target }) => {
  logScale = !logScale;
  target.setAttribute("aria-pressed", logScale);
  drawChart();
});
$(".levels").addEventListener("click", ({ target }) => {
  byLevel = !byLevel;
  target.setAttribute("aria-pressed", byLevel);
  drawChart();
});
