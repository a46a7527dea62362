// The exact denoiser of points in the plane, as dp/diffusion/exact.py has it for images: the best possible network, in
// closed form. Given x_t = alpha x0 + sigma eps, where x0 is one of the points p_i, each as likely as the others,
//
//     w_i = softmax_i(-|x_t - alpha p_i|² / (2 sigma²)),   x0 = sum_i w_i p_i
//
// Karras et al. 2022, arXiv 2206.00364, appendix B.3. points: Float64Array of x, y, x, y, ...
function createDenoiser(points) {
  const NEGLIGIBLE = -40; // in the exponent: e^-40 changes no digit of a sum that holds a 1
  const count = points.length / 2;
  const exponents = new Float64Array(count);

  // Fill `exponents`, and return their maximum, which is taken off before the exponential so that none underflows.
  function measure(x, y, { alpha, sigma }) {
    const sharpness = -1 / (2 * Math.max(sigma * sigma, TINY));
    let most = -Infinity;
    for (let i = 0; i < count; i++) {
      const [dx, dy] = [x - alpha * points[2 * i], y - alpha * points[2 * i + 1]];
      const exponent = Math.max(sharpness * (dx * dx + dy * dy), -Number.MAX_VALUE); // at sigma 0 it overflows
      exponents[i] = exponent;
      if (exponent > most) most = exponent;
    }
    return most;
  }

  // Write x0 of `x`, y, x, y, ..., from particle `first` up to `last`, to `x0`.
  function predict(x, level, x0, first = 0, last = x.length / 2) {
    for (let j = first; j < last; j++) {
      const most = measure(x[2 * j], x[2 * j + 1], level);
      let [sum, sumX, sumY] = [0, 0, 0];
      for (let i = 0; i < count; i++) {
        const exponent = exponents[i] - most;
        if (exponent < NEGLIGIBLE) continue;
        const weight = Math.exp(exponent);
        sum += weight;
        sumX += weight * points[2 * i];
        sumY += weight * points[2 * i + 1];
      }
      x0[2 * j] = sumX / sum;
      x0[2 * j + 1] = sumY / sum;
    }
  }

  // The weight of each point for a particle at (x, y): its candidates.
  function weigh(x, y, level) {
    const most = measure(x, y, level);
    const weights = exponents.map((exponent) => Math.exp(exponent - most));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return weights.map((weight) => weight / sum);
  }

  // The density of x_t, up to a factor, in the middle of the cells of a grid of `side` by `side` over [-reach, reach]²,
  // row by row from the top. A Gaussian in the plane is a product of two, so this takes few exponentials. Where the noise
  // is finer than a cell, it is drawn as wide as one.
  function density({ alpha, sigma }, side, reach) {
    const cell = (2 * reach) / side;
    const width = Math.max(sigma, 0.7 * cell);
    const sharpness = -1 / (2 * width * width);
    const sums = new Float64Array(side * side);
    const across = new Float64Array(side);
    for (let i = 0; i < count; i++) {
      const [x, y] = [alpha * points[2 * i], -alpha * points[2 * i + 1]];
      const [left, right] = cellsAround(x);
      const [top, bottom] = cellsAround(y);
      for (let j = left; j < right; j++) across[j] = Math.exp(sharpness * (middleOf(j) - x) ** 2);
      for (let row = top; row < bottom; row++) {
        const height = Math.exp(sharpness * (middleOf(row) - y) ** 2);
        for (let j = left; j < right; j++) sums[row * side + j] += height * across[j];
      }
    }
    return sums;

    function middleOf(j) {
      return (j + 0.5) * cell - reach;
    }

    function cellsAround(value) {
      const FAR = 3.5; // times the width
      const [low, high] = [-FAR, FAR].map((far) => Math.round((value + far * width + reach) / cell));
      return [Math.max(low, 0), Math.min(high, side)];
    }
  }

  return { points, count, predict, weigh, density };
}

// How many points are still possible: the exponential of the entropy of their weights.
const effectiveCount = (weights) => Math.exp(-weights.reduce((sum, w) => sum + (w > 0 ? w * Math.log(w) : 0), 0));
