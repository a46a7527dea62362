// Where the run would start: the image with noise added, and the place on the schedule. `props.levels` has rows of
// [t, alpha, sigma, log_snr] from t = 0 to 1, and `props.side` is the size of the model's images.
function createPreview({ root, props, image, strength }) {
  const MARGIN = 6; // pixels on each side of the curve
  const MAX_LOG_SNR = 12; // that the curve shows
  const $ = (selector) => root.querySelector(selector);
  const [noisy, curve] = [$(".noisy-image"), $(".schedule")];
  let noise = []; // the same in every preview, so that only its amount changes

  function draw() {
    if (root.dataset.state !== "chosen") return;
    const [t, alpha, sigma, logSnr] = levelAt(Number(strength.value));
    drawNoisyImage(alpha, sigma);
    drawCurve(t);
    const start = `starts at t ${t.toFixed(2)} · log-SNR ${logSnr.toFixed(2)}`;
    $(".strength-row output").textContent = t.toFixed(2);
    $(".start-level").textContent = t >= 1 ? "pure noise: nothing of your image remains except the areas you keep" : start;
  }

  function levelAt(t) {
    const levels = props.levels || [];
    const after = levels.findIndex((row) => row[0] >= t);
    if (after <= 0) return levels[0] || [t, 1, 0, 0];
    const [a, b] = [levels[after - 1], levels[after]];
    const fraction = (t - a[0]) / (b[0] - a[0] || 1);
    return a.map((value, i) => value + fraction * (b[i] - value));
  }

  function drawNoisyImage(alpha, sigma) {
    const side = props.side || 32;
    if (noisy.width !== side) noisy.width = noisy.height = side;
    const pen = noisy.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, 0, 0, side, side);
    const pixels = pen.getImageData(0, 0, side, side);
    if (noise.length !== pixels.data.length) noise = Array.from(pixels.data, sampleGaussian);
    for (let i = 0; i < pixels.data.length; i++)
      if (i % 4 < 3) pixels.data[i] = 127.5 + 127.5 * (alpha * (pixels.data[i] / 127.5 - 1) + sigma * noise[i]);
    pen.putImageData(pixels, 0, 0);
  }

  function sampleGaussian() {
    return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }

  function drawCurve(start) {
    const rows = props.levels || [];
    const fitted = rows.length ? fitCanvas(curve) : null;
    if (!fitted) return;
    const { pen, width, height } = fitted;
    const style = getComputedStyle(root);
    const bound = (logSnr) => Math.max(-MAX_LOG_SNR, Math.min(MAX_LOG_SNR, logSnr));
    const bounded = rows.map((row) => bound(row[3]));
    const [low, high] = [Math.min(...bounded), Math.max(...bounded)];
    const x = (t) => MARGIN + (width - 2 * MARGIN) * (1 - t);
    const y = (logSnr) => height - MARGIN - ((height - 2 * MARGIN) * (bound(logSnr) - low)) / (high - low || 1);
    pen.fillStyle = style.getPropertyValue("--border-color-primary");
    pen.fillRect(MARGIN, 0, x(start) - MARGIN, height); // the part that the run skips
    [pen.strokeStyle, pen.lineWidth] = [style.getPropertyValue("--color-accent"), 2];
    drawLine(pen, rows.map(([t, , , logSnr]) => [x(t), y(logSnr)]));
    pen.fillStyle = style.getPropertyValue("--color-accent");
    pen.beginPath();
    pen.arc(x(start), y(levelAt(start)[3]), 4, 0, 2 * Math.PI);
    pen.fill();
  }

  new ResizeObserver(draw).observe(root);

  return { draw };
}
