// A run of many particles from noise to points, kept whole: `x[k]` are the particles before step k and `x[steps]` the
// result, `x0[k]` the predictions in step k; each an array of x, y, x, y, ...

// The noise of a run: for each particle a stream of its own, which depends on the seed and its number alone, as in
// dp/diffusion/noise.py. So runs with one seed start from the same noise, and more particles leave the others in place.
function createNoise(seed, particles) {
  const streams = Array.from({ length: particles }, (_, i) => createGaussian(seed * 65537 + i));
  return () => Float64Array.from(streams.flatMap((drawPair) => drawPair()));
}

// noise()   standard normal numbers for all particles: where they start, then once for each step that draws
function createRun({ plan, denoiser, noise }) {
  const SLICE = 16; // particles between two looks at the clock
  const steps = plan.table.length;
  const run = { plan, denoiser, steps, x: [noise()], x0: [], advance };
  let predicted = 0; // the particles whose x0 of the current step is known

  // Compute until `isDue()`. Return whether the run is complete.
  function advance(isDue) {
    const particles = run.x[0].length / 2;
    while (run.x.length <= steps) {
      const k = run.x.length - 1;
      run.x0[k] ||= new Float64Array(2 * particles);
      while (predicted < particles) {
        if (isDue()) return false;
        const last = Math.min(predicted + SLICE, particles);
        denoiser.predict(run.x[k], plan.t[k], run.x0[k], predicted, last);
        predicted = last;
      }
      run.x.push(update(run.x[k], run.x0[k], run.x0[k - 1] || run.x0[k], plan.draws[k] ? noise() : null, plan.table[k]));
      predicted = 0;
    }
    return true;
  }

  return run;
}

// Where the particles are at a position from 0 to the number of steps: in step k, of which `share` is over. Between two
// steps they move in a straight line.
function placeIn(run, position) {
  const k = Math.min(Math.floor(position + 1e-9), run.steps - 1);
  const share = Math.max(position - k, 0);
  return { k, share, x: run.x[k].map((value, i) => value + share * (run.x[k + 1][i] - value)) };
}

// x_s = a x_t + b x0 + c (x0 - x0_prev) + d noise
function update(x, x0, before, noise, [a, b, c, d]) {
  return x.map((value, i) => a * value + b * x0[i] + c * (x0[i] - before[i]) + (noise ? d * noise[i] : 0));
}

// Call `advance` of each run in short tasks, so that the page stays responsive. Return a promise of whether all are
// complete: it is false once `isWanted()` is.
async function completeRuns(runs, isWanted) {
  const SLICE_MS = 8;
  for (const run of runs)
    for (;;) {
      const until = performance.now() + SLICE_MS;
      if (!isWanted()) return false;
      if (run.advance(() => performance.now() > until)) break;
      await new Promise((done) => setTimeout(done));
    }
  return true;
}
