// The small canvas that shows the training set and takes more points: from the pointer, or from a brush that the arrow
// keys move. `add` gets a point in [-1, 1]², and `finish` follows the last point of a stroke.
function createPad({ canvas, root, pointsOf, add, finish }) {
  const REACH = 1.12; // of the canvas, so that points at the edge are whole
  const APART = 0.045; // between two points of a stroke
  const STEP = 0.05; // by which an arrow key moves the brush
  const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
  let last = null; // the last point of the stroke under way
  let brush = null; // of the keyboard
  let cursor = [0, 0];

  function draw() {
    const fitted = fitCanvas(canvas);
    if (!fitted) return;
    const { pen, width } = fitted;
    const style = getComputedStyle(root);
    const pixel = (value) => (width * (1 + value / REACH)) / 2;
    const points = pointsOf();
    pen.fillStyle = style.getPropertyValue("--body-text-color");
    pen.beginPath();
    for (let i = 0; i < points.length; i += 2) addDot(pen, pixel(points[i]), pixel(-points[i + 1]), 1.5);
    pen.fill();
    if (!points.length) {
      [pen.textAlign, pen.textBaseline, pen.font] = ["center", "middle", "14px system-ui"];
      pen.fillText("Draw here", width / 2, width / 2);
    }
    if (!brush) return;
    [pen.strokeStyle, pen.lineWidth] = [style.getPropertyValue("--color-accent"), 2];
    pen.beginPath();
    addDot(pen, pixel(brush[0]), pixel(-brush[1]), 6);
    pen.stroke();
  }

  function placeOf({ offsetX, offsetY }) {
    const inside = (pixel) => clamp(((2 * pixel) / canvas.clientWidth - 1) * REACH, -1, 1);
    return [inside(offsetX), -inside(offsetY)];
  }

  function strokeTo(place) {
    if (last && Math.hypot(place[0] - last[0], place[1] - last[1]) < APART) return;
    last = place;
    add(place);
  }

  function onKey(event) {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (move) brush = cursor = cursor.map((value, i) => clamp(value + move[i], -1, 1));
    else {
      add(cursor);
      finish();
    }
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [last, brush] = [null, null];
    strokeTo(placeOf(event));
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && strokeTo(placeOf(event)));
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) brush = cursor;
    draw();
  });
  canvas.addEventListener("blur", () => {
    brush = null;
    draw();
  });

  return { draw };
}
