// The image that a run starts from, for the worker: `pixels` in [-1, 1], channels first, and `mask`, 1 where the image is
// kept, or null. value: of the component that chooses it, see start_image.py.
async function readStart(value, { image_size: side, channels }) {
  if (!value) return null;
  const image = await readScaled(value.image, side);
  const mask = value.mask ? await readScaled(value.mask, side) : null;
  const area = side * side;
  const gray = (i) => 0.299 * image[4 * i] + 0.587 * image[4 * i + 1] + 0.114 * image[4 * i + 2]; // ITU-R BT.601, as Pillow
  const pixels = Float32Array.from({ length: channels * area }, (_, i) => {
    const byte = channels === 1 ? gray(i) : image[4 * (i % area) + Math.floor(i / area)];
    return byte / 127.5 - 1;
  });
  const kept = mask && Float32Array.from({ length: area }, (_, i) => (mask[4 * i + 3] >= 128 ? 1 : 0));
  if (value.strength >= 1 && !kept?.some(Boolean)) return null; // nothing of the image would remain
  return { pixels, mask: kept?.some(Boolean) ? kept : null, strength: value.strength };
}

async function readScaled(uri, side) {
  const image = await decodeImage(uri);
  const pen = new OffscreenCanvas(side, side).getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, side, side);
  image.close();
  return pen.getImageData(0, 0, side, side).data;
}
