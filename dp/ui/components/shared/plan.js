// Noise schedules, samplers and the plan of a run, in JavaScript: the same mathematics, in the same order and with the
// same names as in dp/diffusion (schedules.py, samplers.py, plan.py), for pages that sample without a server. Numbers are
// float64, as there. Nothing here knows an image or the page. The tests compare both.
//
// The convention: t = 1 is pure noise and t = 0 the data,
//
//     x_t = alpha x0 + sigma eps,   alpha = scale sqrt(gamma),   sigma = sqrt(1 - gamma),   log_snr = log(alpha² / sigma²)
const TINY = 2.2250738585072014e-308; // the smallest normal number: the floor under sigma², so that log_snr stays finite

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// ---- noise schedules: t -> gamma, the signal power that is left, and the inverse `time`
// Chen, "On the Importance of Noise Scheduling for Diffusion Models", arXiv 2301.10972, Algorithm 1 and Table 1

const SCHEDULES = {
  // gamma = 1 - t
  linear: ({ clip_min = 1e-9 } = {}) => ({
    gamma: (t) => clamp(1 - t, clip_min, 1),
    time: (gamma) => clamp(1 - gamma, 0, 1),
  }),

  // v(u) = cos(u π/2)^(2 tau). In floating point cos(π/2) can be just below 0, and a fractional power of that is NaN.
  cosine: ({ start = 0, end = 1, tau = 1, ...rest } = {}) =>
    makeCurve({
      ...rest,
      start,
      end,
      v: (u) => Math.max(Math.cos((u * Math.PI) / 2), 0) ** (2 * tau),
      inverse: (v) => (Math.acos(Math.min(Math.max(v, 0) ** (1 / (2 * tau)), 1)) * 2) / Math.PI,
    }),

  // v(u) = sigmoid(u / tau)
  sigmoid: ({ start = -3, end = 3, tau = 1, ...rest } = {}) =>
    makeCurve({
      ...rest,
      start,
      end,
      v: (u) => 1 / (1 + Math.exp(-u / tau)),
      inverse: (v) => tau * (Math.log(clamp(v, 0, 1)) - Math.log1p(-clamp(v, 0, 1))),
    }),
};

// The segment of the curve `v` from `start` to `end`, rescaled so that gamma falls from 1 to 0.
function makeCurve({ start, end, v, inverse, clip_min = 1e-9 }) {
  const [first, last] = [v(start), v(end)];
  return {
    gamma: (t) => clamp((last - v(t * (end - start) + start)) / (last - first), clip_min, 1),
    time: (gamma) => clamp((inverse(last - gamma * (last - first)) - start) / (end - start), 0, 1),
  };
}

// The noise level of `schedule` at t in [0, 1], with the signal scaled by `scale` in (0, 1].
function levelAt(schedule, t, scale = 1) {
  const gamma = schedule.gamma(t);
  const [alpha, variance] = [scale * Math.sqrt(gamma), 1 - gamma];
  return { t, gamma, alpha, sigma: Math.sqrt(variance), log_snr: 2 * Math.log(alpha) - Math.log(Math.max(variance, TINY)) };
}

// ---- samplers: the levels of a run -> a table with a row [a, b, c, d] for each step,
//
//     x_s = a x_t + b x0 + c (x0 - x0_prev) + d noise
//
// If the prediction is right, x_s has its mean and its variance: a alpha_t + b = alpha_s, and a² sigma_t² + d² = sigma_s².

const SAMPLERS = {
  // Song et al. 2021, arXiv 2010.02502, eq. 12 and 16. eta: 0 adds no noise, 1 as much as ancestral sampling
  ddim: (t, s, eta) => t.map((from, k) => takeFirstOrder(from, s[k], eta)),
  // Ancestral sampling, which is DDIM at eta = 1. Ho et al. 2020, arXiv 2006.11239, eq. 6-7
  ddpm: (t, s) => SAMPLERS.ddim(t, s, 1),
  // DPM-Solver++(2M): DDIM, of second order. Lu et al. 2022, arXiv 2211.01095, Algorithm 2
  dpmpp_2m: (t, s) => extrapolate(SAMPLERS.ddim(t, s, 0), t, s),
  // SDE-DPM-Solver++(2M): ancestral sampling, of second order, in the "midpoint" form of k-diffusion
  dpmpp_2m_sde: (t, s) => extrapolate(SAMPLERS.ddim(t, s, 1), t, s),
  // Multistep consistency sampling. Song et al. 2023, arXiv 2303.01469, Algorithm 1
  consistency: (t, s) => s.map((to) => [0, to.alpha, 0, to.sigma]),
};

function takeFirstOrder(t, s, eta) {
  const h = -Math.expm1(Math.min(t.log_snr - s.log_snr, 0)); // the fraction of sigma_t's noise that the step removes
  // A steep schedule can round sigma_t to 0 above t = 0; sigma_s is 0 then too, and 0 / 0 must be 0.
  const a = (s.sigma * Math.sqrt(1 - eta ** 2 * h)) / Math.max(t.sigma, Math.sqrt(TINY));
  return [a, s.alpha - t.alpha * a, 0, eta * s.sigma * Math.sqrt(h)];
}

// The table with x0 extrapolated to the middle of each step in lambda = log_snr / 2, from this call and the one before.
// Not on the first step, not where a clipped schedule stands still, and not on a step that reaches t = 0, where the
// middle lies at infinity.
function extrapolate(table, t, s) {
  return table.map(([a, b, , d], k) => {
    const past = k ? t[k].log_snr - t[k - 1].log_snr : 0;
    const ratio = s[k].sigma > 0 && past > 0 ? (s[k].log_snr - t[k].log_snr) / (2 * past) : 0;
    return [a, b, b * ratio, d];
  });
}

// Whether a sampler adds fresh noise.
const isStochastic = (sampler, eta) => ["ddpm", "dpmpp_2m_sde", "consistency"].includes(sampler) || eta > 0;

// ---- the plan: everything that a run needs, computed once. Step k goes from level t[k] to level s[k].

// strength      the t from which the run starts
// timeDifference   in units of t: how much lower each target is, Chen et al. 2022, arXiv 2208.04202, sec. 2.3
// scale         of the model's input
// trained       [name, keywords] of the schedule that the network knows, if it is another one: networkTime is then the
//               time at which that schedule has the level's gamma
// draws         whether the step consumes fresh noise: apart from `d`, which may round to 0
// guided        whether the step's network time is in `guidanceInterval`
function makePlan({
  timesteps,
  sampler,
  schedule,
  scheduleKwargs = {},
  timeDifference = 0,
  eta = 0,
  strength = 1,
  scale = 1,
  trained = null,
  guidanceInterval = [0, 1],
}) {
  const noise = SCHEDULES[schedule](scheduleKwargs);
  const grid = timeGrid(strength, timesteps);
  const t = grid.slice(0, -1).map((time) => levelAt(noise, time, scale));
  // 0.3 - 3 / 10 is t = 0, though it rounds to 6e-17
  const targets = grid.slice(1).map((time) => (time - timeDifference > 1e-12 ? time - timeDifference : 0));
  const s = targets.map((time) => levelAt(noise, time, scale));
  const known = trained && SCHEDULES[trained[0]](trained[1] || {});
  const networkTime = t.map((at) => (known ? known.time(at.gamma) : at.t));
  const [low, high] = guidanceInterval;
  return {
    t,
    s,
    networkTime,
    table: SAMPLERS[sampler](t, s, eta),
    draws: s.map((at) => at.t > 0 && isStochastic(sampler, eta)),
    guided: networkTime.map((time) => low - 1e-9 <= time && time <= high + 1e-9),
  };
}

// Equal intervals from `strength` to 0, computed from both ends, as torch.linspace does.
function timeGrid(strength, timesteps) {
  const size = -strength / timesteps;
  return Array.from({ length: timesteps + 1 }, (_, k) =>
    k < (timesteps + 1) / 2 ? strength + size * k : 0 - size * (timesteps - k),
  );
}
