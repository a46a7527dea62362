// The training sets: points in [-1, 1]², as Float64Array of x, y, x, y, ... They are the same on every visit.
const MAX_POINTS = 400;
const WORD = "data";

const POINT_SETS = {
  moons: { name: "Two moons", make: () => scatter(0.035, (share, i) => moon(Math.PI * share, i % 2)) },
  ring: { name: "Ring", make: () => scatter(0.03, (share) => onCircle(2 * Math.PI * share, 0.85)) },
  spiral: { name: "Spiral", make: () => scatter(0.015, (share) => onCircle(4.5 * Math.PI * Math.sqrt(share), 0.05 + 0.9 * Math.sqrt(share))) },
  islands: { name: "Eight islands", make: () => scatter(0.05, (_, i) => onCircle((Math.PI * (i % 8)) / 4, 0.85)) },
  word: { name: `The word “${WORD}”`, make: () => makeWord() },
  drawn: { name: "Drawn by hand", make: () => new Float64Array() },
};

const onCircle = (angle, radius) => [radius * Math.cos(angle), radius * Math.sin(angle)];

// The upper moon, or the lower one, which is shifted into its opening.
function moon(angle, isLower) {
  const [x, y] = isLower ? [1 - Math.cos(angle), 0.5 - Math.sin(angle)] : [Math.cos(angle), Math.sin(angle)];
  return [(x - 0.5) / 1.6, (y - 0.25) / 1.6];
}

// Points at place(share, i), where share goes from 0 to 1, each moved by Gaussian noise of this width.
function scatter(width, place, count = 320) {
  const drawPair = createGaussian(7);
  const points = Array.from({ length: count }, (_, i) => {
    const [[x, y], [dx, dy]] = [place((i + 0.5) / count, i), drawPair()];
    return [x + width * dx, y + width * dy];
  });
  return Float64Array.from(points.flat(), (value) => clamp(value, -1, 1));
}

// Points spread evenly over the letters as this browser draws them, stretched to fill a box.
function makeWord(count = 360) {
  const [width, height] = [240, 132];
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.font = "bold 100px system-ui, sans-serif";
  const { actualBoundingBoxLeft: left, actualBoundingBoxRight: right, actualBoundingBoxAscent: ascent } = pen.measureText(WORD);
  pen.scale(width / (left + right), height / ascent);
  pen.fillText(WORD, left, ascent);
  const { data } = pen.getImageData(0, 0, width, height);
  const inked = [];
  for (let i = 0; i < width * height; i++) if (data[4 * i + 3] > 127) inked.push([i % width, Math.floor(i / width)]);
  const chosen = spread(inked, count);
  return Float64Array.from(chosen.flatMap(([x, y]) => [(2 * x + 1) / width - 1, (height - 2 * y - 1) / width]));
}

// `count` of the pixels, no two of them close: the distance is lowered until there are enough.
function spread(pixels, count) {
  const order = pixels.map((_, i) => (i * 7919) % pixels.length); // 7919 is prime, so that all parts fill up together
  for (let apart = 2 * Math.sqrt(pixels.length / count); ; apart *= 0.9) {
    const chosen = [];
    for (const i of order) {
      const [x, y] = pixels[i];
      if (chosen.every((other) => Math.hypot(other[0] - x, other[1] - y) >= apart)) chosen.push(pixels[i]);
      if (chosen.length === count) return chosen;
    }
    if (apart < 1) return chosen;
  }
}
