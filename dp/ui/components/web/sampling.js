// A sampling run, step by step: the same as `DiffusionPolicy.stream` (dp/diffusion/policy.py, state.py, guidance.py), for
// a network that is given as a function. Arrays are Float32Arrays of whole images, one after the other, in [-1, 1].
//
// model: { network: { channels, image_size, latents: [count, width], num_classes }, policy: { objective, scale,
//   noise_schedule, schedule_kwargs } }
// settings: { images, timesteps, sampler, schedule, scheduleKwargs, timeDifference, eta, seed, walkTo, strength, labels,
//   guidance, guidanceInterval, start, mask }: as in `SampleSettings`; `labels` has one number per image, 0 for none,
//   `start` one image, and `mask` one value per pixel, 1 where the image is kept
// infer({ x, time, x0, latents, condition }, rows) -> { prediction, latents }

const pixelsOf = ({ network }) => network.channels * network.image_size ** 2;
const latentsOf = ({ network }) => network.latents[0] * network.latents[1];

// The plan of a run, and the level at which the network sees each step.
function planRun(model, settings) {
  const { noise_schedule: name, schedule_kwargs: keywords, scale } = model.policy;
  const isOwn = settings.schedule === name && isSame(settings.scheduleKwargs, keywords);
  const plan = makePlan({ ...settings, scale, trained: isOwn ? null : [name, keywords] });
  const known = SCHEDULES[name](keywords);
  return { ...plan, seen: plan.networkTime.map((time) => levelAt(known, time, scale)) };
}

const isSame = (a, b) => Object.keys({ ...a, ...b }).every((key) => a[key] === b[key]);

// Yield every step: { index, x_t, x0, moved }, with the noisy images that the network got, its prediction, and how much
// that changed in each image (RMS, with white at 1).
async function* sampleImages(model, settings, infer) {
  const { images } = settings;
  const [pixels, plan] = [pixelsOf(model), planRun(model, settings)];
  const streams = makeStreams(settings);
  let x = begin(drawNoise(streams, pixels), plan, settings);
  let carry = null; // of the step before: { x0, latents, latentsNone }
  for (let k = 0; k < settings.timesteps; k++) {
    const next = await denoise(model, plan, k, settings, infer, x, carry);
    if (!next.x0.every(Number.isFinite)) throw new Error("the model's prediction is not a number any more, so the run ends here");
    keepKnown(next.x0, settings);
    yield { index: k + 1, x_t: x, x0: next.x0, moved: measureChange(next.x0, carry?.x0, images) };
    x = update(plan.table[k], x, next.x0, carry?.x0, plan.draws[k] ? drawNoise(streams, pixels) : null);
    carry = next;
  }
}

function drawNoise(streams, pixels) {
  const noise = new Float32Array(streams.length * pixels);
  streams.forEach((stream, i) => noise.set(stream.draw(pixels), i * pixels));
  return noise;
}

// Below full strength, a run starts from an image with noise added. Meng et al. 2021, arXiv 2108.01073
function begin(noise, plan, { start, strength = 1 }) {
  if (strength >= 1) return noise;
  const { alpha, sigma } = plan.t[0];
  return noise.map((value, i) => alpha * start[i % start.length] + sigma * value);
}

function keepKnown(x0, { start, mask }) {
  if (!mask) return;
  for (let i = 0; i < x0.length; i++) if (mask[i % mask.length]) x0[i] = start[i % start.length];
}

function measureChange(x0, before, images) {
  const size = x0.length / images;
  return Array.from({ length: images }, (_, image) => {
    if (!before) return 0;
    let sum = 0;
    for (let i = image * size; i < (image + 1) * size; i++) sum += ((x0[i] - before[i]) / 2) ** 2;
    return Math.sqrt(sum / size);
  });
}

// x_s = a x_t + b x0 + c (x0 - x0_prev) + d noise
function update(row, x, x0, before, noise) {
  const [a, b, c, d] = row.map(Math.fround);
  return x.map((value, i) => a * value + b * x0[i] + (before ? c * (x0[i] - before[i]) : 0) + (noise ? d * noise[i] : 0));
}

// ---- one network call: the rows of the images, and for guided ones a second row without their class

async function denoise(model, plan, k, settings, infer, x, carry) {
  const guidance = plan.guided[k] ? settings.guidance : 1;
  const rows = branchRows(settings.labels, guidance);
  const time = Math.fround(plan.networkTime[k]);
  const [pixels, size] = [pixelsOf(model), latentsOf(model)];
  const inputs = {
    x: gather(normalize(x, model.policy.scale, settings.images), rows, pixels),
    time: new Float32Array(rows.length).fill(time),
    x0: carry ? gather(carry.x0, rows, pixels) : new Float32Array(rows.length * pixels),
    latents: new Float32Array(rows.length * size),
    condition: rows.map((row) => row.label),
  };
  if (carry)
    rows.forEach(({ image, isPlain }, i) => {
      const from = isPlain ? carry.latentsNone : carry.latents;
      inputs.latents.set(from.subarray(image * size, (image + 1) * size), i * size);
    });
  const { prediction, latents } = await infer(inputs, rows.length);
  const combined = combine(prediction, rows, settings.images, Math.fround(guidance), pixels);
  return { x0: toX0(combined, x, plan.seen[k], model.policy.objective), ...splitLatents(latents, rows, settings.images, size) };
}

// The first rows are those of the images in order. isPlain: whether the row is of the branch without a class.
function branchRows(labels, guidance) {
  const isPlain = guidance === 0;
  const first = labels.map((label, image) => ({ image, label: isPlain ? 0 : label, isPlain }));
  const guided = labels.flatMap((label, image) => (label > 0 && guidance !== 0 && guidance !== 1 ? [image] : []));
  return [...first, ...guided.map((image) => ({ image, label: 0, isPlain: true }))];
}

function gather(values, rows, size) {
  const gathered = new Float32Array(rows.length * size);
  rows.forEach(({ image }, i) => gathered.set(values.subarray(image * size, (image + 1) * size), i * size));
  return gathered;
}

// Below an input scale of 1, the network gets images of unit variance. Chen 2023, arXiv 2301.10972, sec. 3
function normalize(x, scale, images) {
  if (scale >= 1) return x;
  const [size, normalized] = [x.length / images, new Float32Array(x.length)];
  for (let start = 0; start < x.length; start += size) {
    const image = x.subarray(start, start + size);
    const mean = image.reduce((sum, value) => sum + value, 0) / size;
    const deviation = Math.sqrt(image.reduce((sum, value) => sum + (value - mean) ** 2, 0) / size);
    normalized.set(image.map((value) => value / Math.max(deviation, 1e-5)), start);
  }
  return normalized;
}

// prediction = none + guidance (conditional - none). Ho & Salimans 2022, arXiv 2207.12598
function combine(prediction, rows, images, guidance, pixels) {
  const combined = prediction.slice(0, images * pixels);
  rows.slice(images).forEach(({ image }, i) => {
    const none = prediction.subarray((images + i) * pixels, (images + i + 1) * pixels);
    for (let j = 0; j < pixels; j++) combined[image * pixels + j] = none[j] + guidance * (combined[image * pixels + j] - none[j]);
  });
  return combined;
}

// Each branch has latents of its own: zeros where it did not run.
function splitLatents(latents, rows, images, size) {
  const split = { latents: new Float32Array(images * size), latentsNone: new Float32Array(images * size) };
  rows.forEach(({ image, isPlain }, i) => {
    split[isPlain ? "latentsNone" : "latents"].set(latents.subarray(i * size, (i + 1) * size), image * size);
  });
  return split;
}

const TINY_FLOAT = 1.1754943508222875e-38; // the smallest normal number in float32

function toX0(prediction, x, { alpha, sigma }, objective) {
  const power = alpha ** 2 + sigma ** 2;
  const convert = {
    x0: (value) => value,
    eps: (value, noisy) => (noisy - sigma * value) / Math.max(alpha, TINY_FLOAT),
    v: (value, noisy) => (alpha * noisy - sigma * value) / power,
  }[objective];
  return prediction.map((value, i) => clamp(convert(value, x[i]), -1, 1));
}
