// Give a canvas one pixel per pixel of the screen, and clear it. Return its pen, whose unit is the CSS pixel, and its
// size in that unit; null while the canvas is hidden.
function fitCanvas(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return null;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return { pen, width, height };
}

function drawLine(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

// The top left corner of a tile in a grid that is filled row by row.
function tilePosition(index, columns, side) {
  return [(index % columns) * side, Math.floor(index / columns) * side];
}

// The tile under the pointer, or -1. The canvas shows a grid that fills it, scaled as with `object-fit: contain`.
function tileAt(event, canvas, columns, rows) {
  const scale = Math.min(canvas.clientWidth / canvas.width, canvas.clientHeight / canvas.height);
  const [width, height] = [canvas.width * scale, canvas.height * scale];
  const column = Math.floor(((event.offsetX - (canvas.clientWidth - width) / 2) / width) * columns);
  const row = Math.floor(((event.offsetY - (canvas.clientHeight - height) / 2) / height) * rows);
  return column >= 0 && column < columns && row >= 0 && row < rows ? row * columns + column : -1;
}

function decodeImage(uri) {
  return createImageBitmap(new Blob([decodeBase64(uri)]), { colorSpaceConversion: "none" });
}

// The bytes of a data URI. `fetch` would be shorter, but keeps every image in memory.
function decodeBase64(uri) {
  const text = atob(uri.slice(uri.indexOf(",") + 1));
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
