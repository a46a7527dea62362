// Draws a map of images and the paths of predictions among them on a canvas.
// found: { places, landmarks, columns, image }: the places of the images, and a sheet of some of them.
function createMapView({ root, canvas }) {
  const [MARGIN, NEAR] = [22, 14]; // pixels: the edge, how near the pointer must be
  let view = null; // from places to pixels

  // The images and the paths fill the canvas, with the same scale along both axes.
  function createView(width, height, places) {
    const [xs, ys] = [0, 1].map((axis) => places.map((place) => place[axis]));
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = Math.min((width - 2 * MARGIN) / (x1 - x0 || 1), (height - 2 * MARGIN) / (y1 - y0 || 1));
    return ([x, y]) => [width / 2 + scale * (x - (x0 + x1) / 2), height / 2 - scale * (y - (y0 + y1) / 2)];
  }

  // paths: [{ places, at, color, opacity, isFocus }], `at` the number of the place that is shown; `color` in CSS, as
  // three numbers of `hsl` or a name, is followed by the opacity.
  function draw(found, paths) {
    const fitted = fitCanvas(canvas);
    if (!fitted) return;
    view = createView(fitted.width, fitted.height, [...found.places, ...paths.flatMap((path) => path.places)]);
    drawImages(fitted.pen, found);
    for (const path of [...paths].sort((a, b) => a.isFocus - b.isFocus)) drawPath(fitted.pen, path);
  }

  function drawImages(pen, { image, columns, landmarks, places }) {
    const side = image.width / Math.min(columns, landmarks.length);
    pen.fillStyle = getComputedStyle(root).getPropertyValue("--body-text-color-subdued");
    pen.globalAlpha = 0.5;
    for (const place of places) {
      const [x, y] = view(place);
      pen.fillRect(x - 1, y - 1, 2, 2);
    }
    [pen.globalAlpha, pen.imageSmoothingEnabled] = [0.75, true];
    const size = canvas.clientWidth < 420 ? 18 : 26;
    landmarks.forEach((l, i) => {
      const [x, y] = view(places[l]);
      const [sx, sy] = tilePosition(i, columns, side);
      pen.drawImage(image, sx, sy, side, side, x - size / 2, y - size / 2, size, size);
    });
    pen.globalAlpha = 1;
  }

  // As far as the place that is shown solid, the rest faint.
  function drawPath(pen, { places, at, color, opacity, isFocus }) {
    const points = places.map(view);
    [pen.lineWidth, pen.lineJoin] = [isFocus ? 2.5 : 1.5, "round"];
    [pen.strokeStyle, pen.fillStyle, pen.globalAlpha] = [color, color, 0.35 * opacity];
    drawLine(pen, points.slice(at));
    pen.globalAlpha = opacity;
    drawLine(pen, points.slice(0, at + 1));
    pen.beginPath();
    pen.arc(...points[at], isFocus ? 6 : 4, 0, 2 * Math.PI);
    pen.fill();
    [pen.strokeStyle, pen.lineWidth] = ["white", 1.5];
    pen.stroke();
    pen.globalAlpha = 1;
  }

  // The number of the path whose shown place is under the pointer, or -1.
  function pathAt(event, paths) {
    if (!view) return -1;
    const distances = paths.map(({ places, at }) => {
      const [x, y] = view(places[at]);
      return Math.hypot(x - event.offsetX, y - event.offsetY);
    });
    const nearest = distances.indexOf(Math.min(...distances));
    return distances[nearest] < NEAR ? nearest : -1;
  }

  const describe = ({ landmarks, places, shares }) => {
    const percent = Math.round(100 * (shares[0] + shares[1]));
    const more = places.length > landmarks.length ? `, the gray dots ${places.length - landmarks.length} more` : "";
    return `The small images are ${landmarks.length} that the model learned from${more}. The two axes hold ${percent}% of the differences between the images, so neighbors on the map may still look different.`;
  };

  return { draw, pathAt, describe };
}
