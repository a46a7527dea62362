// An image to start from. It is cropped, painted and previewed in the browser; the server gets it only with the run, as
// a small PNG.
const SIDE = 256; // of the square image and mask that are kept here and sent
const $ = (selector) => element.querySelector(selector);
const root = $(".start");
const [image, strength, file] = [$(".image"), $(".strength"), $(".choose input")];
const preview = createPreview({ root, props, image, strength });
const mask = createMask({ root, side: SIDE, onChange: update });
image.width = image.height = SIDE;

async function choose(source) {
  let decoded;
  try {
    decoded = await createImageBitmap(source, { imageOrientation: "from-image" });
  } catch {
    $(".problem").textContent = "The browser cannot read this file as an image. Try a JPEG or PNG.";
    return;
  }
  drawCropped(decoded);
  decoded.close();
  root.dataset.state = "chosen";
  $(".problem").textContent = "";
  mask.clear();
  update();
}

// Draw the square in the middle. It is halved until it is nearly small enough, since one large step would skip most of
// the pixels.
function drawCropped(decoded) {
  let side = Math.min(decoded.width, decoded.height);
  let [source, x, y] = [decoded, (decoded.width - side) / 2, (decoded.height - side) / 2];
  while (side > 2 * SIDE) {
    const half = new OffscreenCanvas(side >> 1, side >> 1);
    half.getContext("2d").drawImage(source, x, y, side, side, 0, 0, half.width, half.width);
    [source, x, y, side] = [half, 0, 0, half.width];
  }
  const pen = image.getContext("2d");
  [pen.imageSmoothingQuality, pen.fillStyle] = ["high", "#fff"]; // transparent images get a white background
  pen.fillRect(0, 0, SIDE, SIDE);
  pen.drawImage(source, x, y, side, side, 0, 0, SIDE, SIDE);
}

function remove() {
  root.dataset.state = "empty";
  file.value = "";
  if (props.value) props.value = null;
}

// Gradio sends the value with the next run.
function update() {
  preview.draw();
  props.value = { image: image.toDataURL("image/png"), mask: mask.toDataUri(), strength: Number(strength.value) };
}

file.addEventListener("change", () => file.files[0] && choose(file.files[0]));
createDropZone(root, ({ files }) => files[0] && choose(files[0]));
$(".remove").addEventListener("click", remove);
strength.addEventListener("input", update);
watch(["levels", "side"], preview.draw);
watch("value", () => {
  if (!props.value) {
    if (root.dataset.state !== "empty") remove(); // the loaded settings belong to a run without a start image
  } else if (props.value.strength !== Number(strength.value)) {
    strength.value = props.value.strength;
    preview.draw();
  }
});
