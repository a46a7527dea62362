// A picture to start from, painted and noised in the browser: the server sees it only when a run is begun, as a small
// PNG. `props.side` is the model's image size, `props.levels` rows of [t, alpha, sigma, log_snr] from t = 0 to 1.
const SIDE = 256; // of the square that is kept here and sent
const $ = (selector) => element.querySelector(selector);
const root = $(".start");
const [picture, kept, noised, curve] = [".picture", ".kept", ".noised", ".curve"].map($);
const [strength, width, file] = [$(".strength"), $(".width"), $(".choose input")];
const MARK = "rgb(34, 197, 94)";
let noise = []; // the same in every preview, so that only its amount changes
let painted = false;
let erase = false;
let last = null; // of the stroke under way

for (const canvas of [picture, kept]) canvas.width = canvas.height = SIDE;

// ---- the picture

async function choose(source) {
  let image;
  try {
    image = await createImageBitmap(source, { imageOrientation: "from-image" });
  } catch {
    return complain("The browser cannot read this file as an image. Try a JPEG or PNG.");
  }
  place(image);
  image.close();
  clear();
  tell();
}

// Halved step by step: one large step would skip most of the pixels.
function place(image) {
  let side = Math.min(image.width, image.height);
  let [from, x, y] = [image, (image.width - side) / 2, (image.height - side) / 2];
  while (side > 2 * SIDE) {
    const half = new OffscreenCanvas(side >> 1, side >> 1);
    half.getContext("2d").drawImage(from, x, y, side, side, 0, 0, half.width, half.width);
    [from, x, y, side] = [half, 0, 0, half.width];
  }
  const pen = picture.getContext("2d");
  [pen.imageSmoothingQuality, pen.fillStyle] = ["high", "#fff"]; // transparency is laid over white
  pen.fillRect(0, 0, SIDE, SIDE);
  pen.drawImage(from, x, y, side, side, 0, 0, SIDE, SIDE);
  root.dataset.state = "chosen";
  $(".problem").textContent = "";
}

function complain(words) {
  $(".problem").textContent = words;
}

function remove() {
  root.dataset.state = "empty";
  file.value = "";
  if (props.value) props.value = null;
}

// ---- painting

function clear() {
  kept.getContext("2d").clearRect(0, 0, SIDE, SIDE);
  painted = false;
}

function stroke(event) {
  const scale = SIDE / kept.clientWidth;
  const here = [event.offsetX * scale, event.offsetY * scale];
  const pen = kept.getContext("2d");
  pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
  [pen.strokeStyle, pen.lineWidth, pen.lineCap] = [MARK, Number(width.value), "round"];
  pen.beginPath();
  pen.moveTo(...(last || here));
  pen.lineTo(...here);
  pen.stroke();
  [last, painted] = [here, true];
}

kept.addEventListener("pointerdown", (event) => {
  kept.setPointerCapture(event.pointerId);
  last = null;
  stroke(event);
});
kept.addEventListener("pointermove", (event) => event.buttons && stroke(event));
kept.addEventListener("pointerup", () => tell());
function wield(rubber) {
  erase = rubber;
  $(".brush").setAttribute("aria-pressed", String(!erase));
  $(".rubber").setAttribute("aria-pressed", String(erase));
}
$(".brush").addEventListener("click", () => wield(false));
$(".rubber").addEventListener("click", () => wield(true));
$(".invert").addEventListener("click", () => {
  const pen = kept.getContext("2d");
  [pen.globalCompositeOperation, pen.fillStyle] = ["source-out", MARK];
  pen.fillRect(0, 0, SIDE, SIDE);
  painted = true;
  tell();
});
$(".clear").addEventListener("click", () => {
  clear();
  tell();
});
$(".remove").addEventListener("click", remove);

// ---- the start on the schedule

function level(t) {
  const levels = props.levels || [];
  const after = levels.findIndex((row) => row[0] >= t);
  if (after <= 0) return levels[0] || [t, 1, 0, 0];
  const [a, b] = [levels[after - 1], levels[after]];
  const share = (t - a[0]) / (b[0] - a[0] || 1);
  return a.map((value, i) => value + share * (b[i] - value));
}

function preview() {
  if (root.dataset.state !== "chosen") return;
  const side = props.side || 32;
  const [t, alpha, sigma, snr] = level(Number(strength.value));
  if (noised.width !== side) noised.width = noised.height = side;
  const pen = noised.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, side, side);
  const pixels = pen.getImageData(0, 0, side, side);
  if (noise.length !== pixels.data.length) noise = Array.from(pixels.data, gaussian);
  for (let i = 0; i < pixels.data.length; i++)
    if (i % 4 < 3) pixels.data[i] = 127.5 + 127.5 * (alpha * (pixels.data[i] / 127.5 - 1) + sigma * noise[i]);
  pen.putImageData(pixels, 0, 0);
  $(".how output").textContent = t.toFixed(2);
  const words = t >= 1 ? "pure noise: nothing of your image remains except the areas you keep" : `starts at t ${t.toFixed(2)} · log-SNR ${snr.toFixed(2)}`;
  $(".where").textContent = words;
  plot(t);
}

const gaussian = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

function plot(start) {
  const rows = props.levels || [];
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [curve.clientWidth, curve.clientHeight];
  if (!across || !rows.length) return;
  [curve.width, curve.height] = [Math.round(across * ratio), Math.round(down * ratio)];
  const pen = curve.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(root);
  const bound = (snr) => Math.max(-12, Math.min(12, snr));
  const snrs = rows.map((row) => bound(row[3]));
  const [low, high] = [Math.min(...snrs), Math.max(...snrs)];
  const x = (t) => 6 + (across - 12) * (1 - t);
  const y = (snr) => down - 6 - ((down - 12) * (bound(snr) - low)) / (high - low || 1);
  pen.fillStyle = style.getPropertyValue("--border-color-primary");
  pen.fillRect(6, 0, x(start) - 6, down); // what the run leaves out
  [pen.strokeStyle, pen.lineWidth] = [style.getPropertyValue("--color-accent"), 2];
  pen.beginPath();
  rows.forEach(([t, , , snr], i) => (i ? pen.lineTo(x(t), y(snr)) : pen.moveTo(x(t), y(snr))));
  pen.stroke();
  pen.fillStyle = style.getPropertyValue("--color-accent");
  pen.beginPath();
  pen.arc(x(start), y(level(start)[3]), 4, 0, 7);
  pen.fill();
}

// ---- to the server, with the next run

function tell() {
  preview();
  const mask = painted ? kept.toDataURL("image/png") : null;
  props.value = { picture: picture.toDataURL("image/png"), mask, strength: Number(strength.value) };
}

file.addEventListener("change", () => file.files[0] && choose(file.files[0]));
root.addEventListener("dragover", (event) => {
  event.preventDefault();
  root.classList.add("over");
});
root.addEventListener("dragleave", () => root.classList.remove("over"));
root.addEventListener("drop", (event) => {
  event.preventDefault();
  root.classList.remove("over");
  if (event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
});
strength.addEventListener("input", () => tell());
new ResizeObserver(preview).observe(root);
watch(["levels", "side"], preview);
watch("value", () => {
  if (!props.value && root.dataset.state === "empty") return; // our own word
  if (!props.value) remove(); // settings were loaded of a run that had no picture
  else if (props.value.strength !== Number(strength.value)) {
    strength.value = props.value.strength;
    preview();
  }
});
