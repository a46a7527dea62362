// The steps of a run as lines from pure noise, at the left, to none: each at its sigma. Where they pile up, steps change
// little; a wide gap is one large step. Those that are over have the accent's color.
function createLevels({ canvas, root }) {
  const MARGIN = 6;
  let fitted = null;
  let colors = null;

  function refit() {
    fitted = fitCanvas(canvas);
    colors = [accentOf(root), getComputedStyle(root).getPropertyValue("--body-text-color-subdued")];
  }

  function draw(run, position) {
    if (!fitted) refit();
    if (!fitted) return;
    const { pen, width, height } = fitted;
    pen.clearRect(0, 0, width, height);
    if (!run) return;
    const x = (sigma) => MARGIN + (width - 2 * MARGIN) * (1 - sigma);
    const sigmas = [...run.plan.t, run.plan.s.at(-1)].map(({ sigma }) => sigma);
    sigmas.forEach((sigma, i) => {
      [pen.strokeStyle, pen.globalAlpha] = i <= position ? [colors[0], 0.9] : [colors[1], 0.5];
      drawLine(pen, [[x(sigma), 3], [x(sigma), height - 3]]);
    });
    const k = Math.min(Math.floor(position), run.steps - 1);
    [pen.fillStyle, pen.globalAlpha] = [colors[0], 1];
    pen.beginPath();
    addDot(pen, x(sigmas[k] + (position - k) * (sigmas[k + 1] - sigmas[k])), height / 2, 4);
    pen.fill();
  }

  return { draw, refit };
}
