// Files made in the page: PNG with texts, ZIP, and the grids of images in them. An image is { width, height, channels,
// bytes }, with 1, 3 or 4 channels.

const concatenate = async (parts) => new Uint8Array(await new Blob(parts).arrayBuffer());
const big = (value) => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
const little = (value, count) => Array.from({ length: count }, (_, i) => (value >>> (8 * i)) & 255);

async function encodePng({ width, height, channels, bytes }, texts = {}) {
  const row = width * channels;
  const filtered = new Uint8Array((row + 1) * height); // each row begins with 0: it is not filtered
  for (let y = 0; y < height; y++) filtered.set(bytes.subarray(y * row, (y + 1) * row), y * (row + 1) + 1);
  const stream = new Blob([filtered]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const color = { 1: 0, 3: 2, 4: 6 }[channels];
  return concatenate([
    Uint8Array.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    makeChunk("IHDR", Uint8Array.from([...big(width), ...big(height), 8, color, 0, 0, 0])),
    ...Object.entries(texts).map(([key, text]) => makeText(key, text)),
    makeChunk("IDAT", packed),
    makeChunk("IEND", new Uint8Array()),
  ]);
}

// International text, as Latin-1 has no letters of most alphabets.
function makeText(key, text) {
  return makeChunk("iTXt", new TextEncoder().encode(`${key}\0\0\0\0\0${text}`));
}

function makeChunk(type, data) {
  const chunk = new Uint8Array(data.length + 12);
  chunk.set(big(data.length));
  chunk.set(new TextEncoder().encode(type), 4);
  chunk.set(data, 8);
  chunk.set(big(checksum(chunk.subarray(4, data.length + 8))), data.length + 8);
  return chunk;
}

// files: name -> bytes. They are stored as they are, because PNGs are compressed.
function makeZip(files, date = new Date()) {
  const time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
  const day = ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const [name, bytes] of Object.entries(files)) {
    const encoded = new TextEncoder().encode(name);
    const sizes = [...little(checksum(bytes), 4), ...little(bytes.length, 4), ...little(bytes.length, 4)];
    const about = [20, 0, 0, 8, 0, 0, ...little(time, 2), ...little(day, 2), ...sizes, ...little(encoded.length, 2), 0, 0];
    parts.push(Uint8Array.from([0x50, 0x4b, 3, 4, ...about]), encoded, bytes);
    directory.push(Uint8Array.from([0x50, 0x4b, 1, 2, 20, 0, ...about, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...little(offset, 4)]), encoded);
    offset += 30 + encoded.length + bytes.length;
  }
  const count = little(directory.length / 2, 2);
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = [0x50, 0x4b, 5, 6, 0, 0, 0, 0, ...count, ...count, ...little(size, 4), ...little(offset, 4), 0, 0];
  return concatenate([...parts, ...directory, Uint8Array.from(end)]);
}

// images: the bytes of several of the same size, one after the other. Missing tiles are black.
function makeGrid(bytes, { side, channels }, columns) {
  const size = side * side * channels;
  const count = bytes.length / size;
  const [width, height] = [columns * side, Math.ceil(count / columns) * side];
  const grid = { width, height, channels, bytes: new Uint8Array(width * height * channels) };
  for (let i = 0; i < count; i++) paste(grid, bytes.subarray(i * size, (i + 1) * size), side, (i % columns) * side, Math.floor(i / columns) * side);
  return grid;
}

// Images side by side, with white gaps.
function makeStrip(images, gap) {
  const [{ width: side, channels }] = images;
  const width = images.length * (side + gap) - gap;
  const strip = { width, height: side, channels, bytes: new Uint8Array(width * side * channels).fill(255) };
  images.forEach((image, i) => paste(strip, image.bytes, side, i * (side + gap), 0));
  return strip;
}

function paste(grid, tile, side, x, y) {
  const row = side * grid.channels;
  for (let line = 0; line < side; line++)
    grid.bytes.set(tile.subarray(line * row, (line + 1) * row), ((y + line) * grid.width + x) * grid.channels);
}

function enlarge({ width, height, channels, bytes }, times) {
  const large = { width: width * times, height: height * times, channels, bytes: new Uint8Array(bytes.length * times ** 2) };
  for (let y = 0; y < large.height; y++)
    for (let x = 0; x < large.width; x++) {
      const from = (Math.floor(y / times) * width + Math.floor(x / times)) * channels;
      large.bytes.set(bytes.subarray(from, from + channels), (y * large.width + x) * channels);
    }
  return large;
}

async function toPngUri(image) {
  return toUri("image/png", await encodePng(image));
}

function toUri(type, bytes) {
  const PART = 8192; // arguments of one call
  let text = "";
  for (let i = 0; i < bytes.length; i += PART) text += String.fromCharCode(...bytes.subarray(i, i + PART));
  return `data:${type};base64,${btoa(text)}`;
}
