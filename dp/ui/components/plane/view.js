// The plane on one canvas: density, training set, field, trails and particles of a run, and one particle's candidates.
const REACH = 2.2; // the canvas shows [-2.2, 2.2]², in which nearly all of the noise lies
const TRAILS = 100; // particles that leave one
const FADED = 0.1; // what is left of the first step's lines at the end of a run: jagged trails would hide the particles
const HUES = 24;

const addDot = (pen, x, y, radius) => {
  pen.moveTo(x + radius, y);
  pen.arc(x, y, radius, 0, 2 * Math.PI);
};

// A particle's color is the direction in which it started, so that one can see where each part of the noise went.
const hueOf = (x, i) => Math.floor((Math.atan2(x[2 * i + 1], x[2 * i]) / (2 * Math.PI) + 1) * HUES) % HUES;

// Gradio's accent is dark in both themes.
const accentOf = (root) => getComputedStyle(root).getPropertyValue(root.closest(".dark") ? "--primary-400" : "--color-accent");

function createView({ canvas, root }) {
  let fitted = null; // the canvas's pen and size
  let colors = null;
  let trails = null; // { layer, run, until }: the trails of a run up to a step
  let arrows = null; // { layer, run, k }: the field of a step
  let groups = null; // { run, byHue }: the particles of each hue

  // Forget what depends on the size or the theme.
  function refit() {
    fitted = fitCanvas(canvas);
    trails = arrows = null;
    const style = getComputedStyle(root);
    const isDark = Boolean(root.closest(".dark"));
    colors = {
      text: style.getPropertyValue("--body-text-color"),
      subdued: style.getPropertyValue("--body-text-color-subdued"),
      accent: accentOf(root),
      background: style.getPropertyValue("--background-fill-primary"),
      heat: isDark ? [129, 140, 248] : [99, 102, 241],
      hues: Array.from({ length: HUES }, (_, i) => `oklch(${isDark ? 0.76 : 0.6} 0.16 ${(360 * i) / HUES})`),
    };
  }

  const across = (value) => (fitted.width * (1 + value / REACH)) / 2;
  const down = (value) => (fitted.width * (1 - value / REACH)) / 2;

  // position: from 0 to the number of steps. shows: { trails, field, density }. followed: a particle or null
  function draw({ run, position, shows, followed }) {
    if (!fitted) refit();
    if (!fitted) return;
    fitted.pen.clearRect(0, 0, fitted.width, fitted.height);
    if (!run) return;
    const { k, share, x } = placeIn(run, position);
    if (groups?.run !== run) groups = { run, byHue: groupByHue(run.x[0]) };
    if (shows.density) drawDensity(run, k, share);
    drawPoints(run.denoiser.points);
    if (shows.field) drawField(run, k);
    if (shows.trails && followed === null) drawTrails(run, k, x);
    drawParticles(x, followed === null ? 0.9 : 0.35);
    if (followed !== null) drawFollowed(run, k, x, followed);
  }

  // What changes only with the step is drawn on a canvas of its own, once.
  function createLayer() {
    const layer = new OffscreenCanvas(canvas.width, canvas.height);
    layer.getContext("2d").scale(canvas.width / fitted.width, canvas.height / fitted.height);
    return layer;
  }

  function drawLayer(layer) {
    fitted.pen.drawImage(layer, 0, 0, fitted.width, fitted.height);
  }

  function groupByHue(x) {
    const byHue = Array.from({ length: HUES }, () => []);
    for (let i = 0; i < x.length / 2; i++) byHue[hueOf(x, i)].push(i);
    return byHue;
  }

  // Between two steps, at the level between theirs.
  function drawDensity({ plan, denoiser, steps }, k, share) {
    const [from, to] = [plan.t[k], k + 1 < steps ? plan.t[k + 1] : plan.s[k]];
    const between = (name) => from[name] + share * (to[name] - from[name]);
    const [alpha, sigma] = [between("alpha"), between("sigma")];
    const side = sigma > 0.4 ? 24 : 48; // cells along each side: wide noise needs fewer
    const sums = denoiser.density({ alpha, sigma }, side, REACH);
    const most = sums.reduce((a, b) => Math.max(a, b), 1e-300);
    const pixels = new ImageData(side, side);
    for (let i = 0; i < sums.length; i++) {
      pixels.data.set(colors.heat, 4 * i);
      pixels.data[4 * i + 3] = 130 * Math.sqrt(sums[i] / most);
    }
    const heat = new OffscreenCanvas(side, side);
    heat.getContext("2d").putImageData(pixels, 0, 0);
    fitted.pen.imageSmoothingQuality = "high";
    drawLayer(heat);
  }

  function drawPoints(points) {
    const { pen, width } = fitted;
    [pen.fillStyle, pen.globalAlpha] = [colors.subdued, 0.5];
    pen.beginPath();
    for (let i = 0; i < points.length; i += 2) addDot(pen, across(points[i]), down(points[i + 1]), Math.max(width / 500, 0.7));
    pen.fill();
    pen.globalAlpha = 1;
  }

  // What the model predicts in step k, on a grid: an arrow points from a place to x0. Long ones are shortened.
  function drawField(run, k) {
    if (arrows?.run !== run || arrows.k !== k) {
      const side = clamp(Math.round(fitted.width / 22), 11, 20);
      const middleOf = (j) => (((j % side) + 0.5) / side) * 2 * REACH - REACH;
      const x = Float64Array.from({ length: 2 * side * side }, (_, i) => middleOf(i % 2 ? Math.floor(i / 2 / side) : i / 2));
      const x0 = new Float64Array(x.length);
      run.denoiser.predict(x, run.plan.t[k], x0);
      arrows = { layer: createLayer(), run, k };
      drawArrows(arrows.layer.getContext("2d"), x, x0, (0.85 * fitted.width) / side);
    }
    drawLayer(arrows.layer);
  }

  function drawArrows(pen, x, x0, longest) {
    [pen.strokeStyle, pen.lineWidth, pen.globalAlpha] = [colors.text, 1, 0.45];
    pen.beginPath();
    for (let i = 0; i < x.length; i += 2) {
      const [dx, dy] = [x0[i] - x[i], x[i + 1] - x0[i + 1]];
      const far = Math.hypot(dx, dy);
      addArrow(pen, across(x[i]), down(x[i + 1]), Math.atan2(dy, dx), (longest * far) / (far + 0.6));
    }
    pen.stroke();
  }

  function addArrow(pen, x, y, angle, length) {
    const [tipX, tipY] = [x + length * Math.cos(angle), y + length * Math.sin(angle)];
    const barb = Math.min(3.5, length / 2);
    pen.moveTo(x, y);
    pen.lineTo(tipX, tipY);
    pen.moveTo(tipX - barb * Math.cos(angle - 0.5), tipY - barb * Math.sin(angle - 0.5));
    pen.lineTo(tipX, tipY);
    pen.lineTo(tipX - barb * Math.cos(angle + 0.5), tipY - barb * Math.sin(angle + 0.5));
  }

  // The trails up to step k stay on a layer: a step fades it and adds its own lines. Going back, all are drawn again.
  function drawTrails(run, k, x) {
    const some = Math.max(Math.round(run.steps / 25), 1); // steps whose lines fade together
    if (trails?.run !== run || trails.until > k) {
      trails = { layer: createLayer(), run, until: k };
      for (let from = 0; from < k; from += some) {
        const places = run.x.slice(from, Math.min(from + some, k) + 1);
        addTrails(trails.layer.getContext("2d"), places, FADED ** ((k - 1 - from) / run.steps));
      }
    }
    const pen = trails.layer.getContext("2d");
    for (; trails.until < k; trails.until++) {
      if (trails.until % some === 0) fade(pen, 1 - FADED ** (some / run.steps)); // a canvas rounds small changes away
      addTrails(pen, run.x.slice(trails.until, trails.until + 2), 1);
    }
    drawLayer(trails.layer);
    addTrails(fitted.pen, [run.x[k], x], 1);
  }

  function fade(pen, share) {
    [pen.globalCompositeOperation, pen.globalAlpha] = ["destination-out", share];
    pen.fillRect(0, 0, fitted.width, fitted.height);
    pen.globalCompositeOperation = "source-over";
  }

  // Lines through some places of all particles that leave a trail.
  function addTrails(pen, places, strength) {
    [pen.lineWidth, pen.globalAlpha, pen.lineJoin] = [clamp(fitted.width / 400, 0.6, 1), 0.5 * strength, "round"];
    groups.byHue.forEach((particles, hue) => {
      pen.strokeStyle = colors.hues[hue];
      pen.beginPath();
      for (const i of particles) {
        if (i >= TRAILS) break; // they are in order
        pen.moveTo(across(places[0][2 * i]), down(places[0][2 * i + 1]));
        for (const x of places.slice(1)) pen.lineTo(across(x[2 * i]), down(x[2 * i + 1]));
      }
      pen.stroke();
    });
    pen.globalAlpha = 1;
  }

  function drawParticles(x, opacity) {
    const { pen, width } = fitted;
    const radius = Math.max(width / 210, 1.2);
    pen.globalAlpha = opacity;
    groups.byHue.forEach((particles, hue) => {
      pen.fillStyle = colors.hues[hue];
      pen.beginPath();
      for (const i of particles) addDot(pen, across(x[2 * i]), down(x[2 * i + 1]), radius);
      pen.fill();
    });
    pen.globalAlpha = 1;
  }

  // One particle: its path, the points that it may still become, each as large as it is likely, and their mean, x0.
  function drawFollowed(run, k, x, i) {
    const { pen, width } = fitted;
    const place = (values) => [across(values[2 * i]), down(values[2 * i + 1])];
    const { points } = run.denoiser;
    const weights = run.denoiser.weigh(run.x[k][2 * i], run.x[k][2 * i + 1], run.plan.t[k]);
    [pen.fillStyle, pen.globalAlpha] = [colors.text, 0.75];
    pen.beginPath();
    weights.forEach((weight, j) => {
      if (weight > 1e-3) addDot(pen, across(points[2 * j]), down(points[2 * j + 1]), 1 + (width / 40) * Math.sqrt(weight));
    });
    pen.fill();
    pen.globalAlpha = 1;
    [pen.strokeStyle, pen.lineWidth, pen.lineJoin] = [colors.text, 2, "round"];
    drawLine(pen, [...run.x.slice(0, k + 1), x].map(place));
    pen.setLineDash([4, 4]);
    [pen.strokeStyle, pen.lineWidth] = [colors.accent, 1.5];
    drawLine(pen, [place(x), place(run.x0[k])]);
    pen.setLineDash([]);
    drawRing(...place(run.x0[k]), Math.max(width / 75, 4), colors.background, colors.accent);
    drawRing(...place(x), Math.max(width / 90, 4), colors.hues[hueOf(run.x[0], i)], colors.text);
  }

  function drawRing(x, y, radius, fill, stroke) {
    const { pen } = fitted;
    [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [fill, stroke, 2];
    pen.beginPath();
    addDot(pen, x, y, radius);
    pen.fill();
    pen.stroke();
  }

  // The particle under the pointer, or null. x: where the particles are
  function particleAt({ offsetX, offsetY }, x) {
    const NEAR = 20; // pixels
    let [nearest, least] = [null, NEAR];
    for (let i = 0; i < x.length / 2; i++) {
      const far = Math.hypot(across(x[2 * i]) - offsetX, down(x[2 * i + 1]) - offsetY);
      if (far < least) [nearest, least] = [i, far];
    }
    return nearest;
  }

  return { draw, refit, particleAt };
}
