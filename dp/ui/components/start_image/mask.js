// The brush, and the mask that it paints over the image: opaque where the image is kept.
function createMask({ root, side, onChange }) {
  const COLOR = "rgb(34, 197, 94)";
  const $ = (selector) => root.querySelector(selector);
  const canvas = $(".mask");
  const pen = canvas.getContext("2d");
  let isPainted = false;
  let isErasing = false;
  let last = null; // the last point of the stroke under way

  function clear() {
    pen.clearRect(0, 0, side, side);
    isPainted = false;
  }

  function stroke(event) {
    const scale = side / canvas.clientWidth;
    const point = [event.offsetX * scale, event.offsetY * scale];
    pen.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
    [pen.strokeStyle, pen.lineWidth, pen.lineCap] = [COLOR, Number($(".brush-width").value), "round"];
    drawLine(pen, [last || point, point]);
    [last, isPainted] = [point, true];
  }

  function invert() {
    [pen.globalCompositeOperation, pen.fillStyle] = ["source-out", COLOR];
    pen.fillRect(0, 0, side, side);
    isPainted = true;
  }

  function setErasing(value) {
    isErasing = value;
    $(".keep").setAttribute("aria-pressed", String(!isErasing));
    $(".erase").setAttribute("aria-pressed", String(isErasing));
  }

  canvas.width = canvas.height = side;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && stroke(event));
  canvas.addEventListener("pointerup", onChange);
  $(".keep").addEventListener("click", () => setErasing(false));
  $(".erase").addEventListener("click", () => setErasing(true));
  $(".invert").addEventListener("click", () => {
    invert();
    onChange();
  });
  $(".clear").addEventListener("click", () => {
    clear();
    onChange();
  });

  return { clear, toDataUri: () => (isPainted ? canvas.toDataURL("image/png") : null) };
}
