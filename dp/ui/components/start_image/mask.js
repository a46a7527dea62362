// The brush, and the mask that it paints over the image: opaque where the image is kept.
function createMask({ root, side, onChange }) {
  const COLOR = "rgb(34, 197, 94)";
  const $ = (selector) => root.querySelector(selector);
  const canvas = $(".mask");
  const pen = canvas.getContext("2d");
  let isPainted = false;
  let isErasing = false;
  let last = null; // the last point of the stroke under way
  const STEP = 8; // by which an arrow key moves the brush
  const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
  const brush = $(".brush");
  let cursor = [side / 2, side / 2]; // of the brush, while the keyboard moves it

  function clear() {
    pen.clearRect(0, 0, side, side);
    isPainted = false;
  }

  function strokeTo(point) {
    pen.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
    [pen.strokeStyle, pen.lineWidth, pen.lineCap] = [COLOR, Number($(".brush-width").value), "round"];
    drawLine(pen, [last || point, [point[0] + 0.01, point[1]]]); // a line without a length would not be drawn
    [last, isPainted] = [point, true];
  }

  function followPointer(event) {
    const scale = side / canvas.clientWidth;
    brush.hidden = true;
    strokeTo([event.offsetX * scale, event.offsetY * scale]);
  }

  function onKey(event) {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    last = cursor;
    if (move) cursor = cursor.map((value, i) => Math.min(Math.max(value + move[i], 0), side));
    showBrush();
    if (move && !event.shiftKey) return;
    strokeTo(cursor);
    onChange();
  }

  function showBrush() {
    const percent = (value) => `${(100 * value) / side}%`;
    Object.assign(brush.style, { left: percent(cursor[0]), top: percent(cursor[1]), width: percent(Number($(".brush-width").value)) });
    brush.hidden = false;
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
    followPointer(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && followPointer(event));
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && showBrush());
  canvas.addEventListener("blur", () => (brush.hidden = true));
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
