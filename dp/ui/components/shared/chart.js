// Axes of a chart on a canvas, with ticks at round values. Units are CSS pixels.
const CHART = { left: 46, right: 8, top: 8, bottom: 20, font: "12px system-ui" };

// The round values in a range: multiples of 1, 2 or 5 times a power of ten, `most` of them or fewer.
function roundTicks(low, high, most) {
  const least = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(least));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least * (1 - 1e-9));
  const first = Math.ceil(low / size - 1e-9);
  const count = Math.floor(high / size + 1e-9) - first + 1;
  return Array.from({ length: Math.max(count, 0) }, (_, i) => Number(((first + i) * size).toPrecision(12)));
}

// The round values in a range of positive numbers, for a logarithmic axis: in a small range, those of a linear one.
function roundLogTicks(low, high, most) {
  const powers = Math.log10(high / low);
  const factors = powers > most - 1 ? [1] : powers > 1 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
    ticks.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(3))));
  const inside = ticks.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  if (inside.length < 2) return roundTicks(low, high, most);
  const every = Math.ceil(inside.length / most);
  return inside.filter((_, i) => i % every === 0);
}

// x, y: [low, high] of the values; isLog: whether y is logarithmic. Return functions from values to pixels, and `value`
// from a pixel to x.
function createScales({ width, height }, { x: [x0, x1], y: [y0, y1], isLog = false }) {
  const scale = (value) => (isLog ? Math.log(Math.max(value, y0)) : value);
  const [low, high] = [scale(y0), scale(y1)];
  const inner = { width: width - CHART.left - CHART.right, height: height - CHART.top - CHART.bottom };
  return {
    x: (value) => CHART.left + (inner.width * (value - x0)) / (x1 - x0 || 1),
    y: (value) => height - CHART.bottom - (inner.height * (scale(value) - low)) / (high - low || 1),
    value: (pixel) => x0 + ((x1 - x0) * (pixel - CHART.left)) / Math.max(inner.width, 1),
  };
}

// Draw both axes. xTicks, yTicks: values; xName: the quantity, at the right end; format: of the values of y.
function drawAxes({ pen, width, height }, root, scales, { xTicks, yTicks, xName, format = String }) {
  const style = getComputedStyle(root);
  pen.font = CHART.font;
  pen.fillStyle = style.getPropertyValue("--body-text-color-subdued");
  pen.strokeStyle = style.getPropertyValue("--border-color-primary");
  pen.lineWidth = 1;
  [pen.textAlign, pen.textBaseline] = ["right", "middle"];
  for (const value of yTicks) {
    pen.fillText(format(value), CHART.left - 6, scales.y(value));
    drawLine(pen, [[CHART.left, scales.y(value)], [width - CHART.right, scales.y(value)]]);
  }
  [pen.textAlign, pen.textBaseline] = ["right", "alphabetic"];
  pen.fillText(xName, width - CHART.right, height - 4);
  const room = width - CHART.right - pen.measureText(xName).width - 8; // beside the name
  pen.textAlign = "center";
  for (const value of xTicks) {
    const [at, text] = [scales.x(value), formatNumber(value)];
    drawLine(pen, [[at, height - CHART.bottom], [at, height - CHART.bottom + 4]]);
    if (at + pen.measureText(text).width / 2 < room) pen.fillText(text, at, height - 4);
  }
}
