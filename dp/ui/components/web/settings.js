// The settings of a run: from the page's controls and links to what the worker gets, checked as in the app
// (dp/ui/sampling/page_values.py), and in words.
const MAX_SEED = 2 ** 31;
const LIMITS = { images: [1, 64], timesteps: [1, 1000], guidance: [0, 10], difference: [0, 3], eta: [0, 1], seed: [0, MAX_SEED - 1] };
LIMITS.walk = LIMITS.seed;
const TITLES = {
  images: "Images",
  timesteps: "Timesteps",
  guidance: "Guidance",
  difference: "Time difference",
  eta: "eta",
  seed: "Seed",
  walk: "Walk to seed",
};
const WHOLE = ["images", "timesteps", "seed", "walk"];
const CONSISTENCY = "consistency"; // the sampler of models that were tuned for few calls, and of no others
const SAMPLER_TITLES = { [CONSISTENCY]: "Consistency", dpmpp_2m: "DPM-Solver++(2M)", ddim: "DDIM", ddpm: "DDPM", dpmpp_2m_sde: "DPM-Solver++(2M) SDE" };
const [ANY, EACH, TRAINED] = ["", "one of each", "trained"];

const samplersOf = ({ policy }) => Object.keys(SAMPLER_TITLES).filter((name) => name !== CONSISTENCY || policy.consistency);

// The values with which the page begins, for the model that `about` describes.
function defaultValues({ sampling }) {
  const own = { timesteps: sampling.timesteps ?? 20, sampler: sampling.sampler ?? "dpmpp_2m", guidance: Math.min(sampling.guidance ?? 1, LIMITS.guidance[1]) };
  return { label: ANY, images: 16, seed: 0, random: true, walk: "", schedule: TRAINED, difference: 0, eta: 0, start: null, ...own };
}

// A number in the limits of its setting. Throws an Error with a sentence.
function checkNumber(name, text, [low, high] = LIMITS[name]) {
  const value = typeof text === "number" ? text : String(text).trim() === "" ? NaN : Number(text);
  if (Number.isFinite(value) && value >= low && value <= high && (!WHOLE.includes(name) || Number.isInteger(value))) return value;
  const kind = WHOLE.includes(name) ? "a whole number" : "a number";
  throw new Error(`${TITLES[name]} must be ${kind} from ${formatNumber(low)} to ${formatNumber(high)}, got ${String(text).trim() || "nothing"}`);
}

function choose(title, value, choices) {
  if (choices.includes(value)) return value;
  throw new Error(`there is no ${title} “${String(value).slice(0, 60)}”; choose one of: ${choices.slice(0, 12).join(", ")}`);
}

// The labels of the images for a choice of the class.
function toLabels(label, images, classes) {
  if (label === ANY) return Array(images).fill(0);
  if (label === EACH && classes.length && !classes.includes(EACH)) return Array.from({ length: images }, (_, i) => 1 + (i % classes.length));
  if (!classes.length) throw new Error("this model has no classes");
  return Array(images).fill(classes.indexOf(choose("class", label, classes)) + 1);
}

// The settings of a run for the values of the controls. Throws an Error with a sentence.
function toSettings(values, about) {
  const { policy, classes, sampling } = about;
  const number = (name) => checkNumber(name, values[name]);
  const walkTo = String(values.walk).trim() === "" ? null : number("walk");
  const images = checkNumber("images", values.images, walkTo === null ? LIMITS.images : [2, LIMITS.images[1]]);
  const labels = toLabels(values.label, images, classes);
  const [timesteps, strength] = [number("timesteps"), values.start?.strength ?? 1];
  const schedule = choose("noise schedule", values.schedule, [TRAINED, ...Object.keys(SCHEDULES)]);
  const isTrained = schedule === TRAINED;
  const sampler = choose("sampler", values.sampler, samplersOf(about));
  return {
    images,
    timesteps,
    sampler,
    schedule: isTrained ? policy.noise_schedule : schedule,
    scheduleKwargs: isTrained ? policy.schedule_kwargs : {},
    timeDifference: Math.min((number("difference") * strength) / timesteps, 1),
    eta: sampler === "ddim" ? number("eta") : 0,
    seed: values.random ? Math.floor(Math.random() * MAX_SEED) : number("seed"),
    walkTo,
    strength,
    labels,
    guidance: labels.some(Boolean) ? number("guidance") : 1,
    guidanceInterval: sampling.guidance_interval ?? [0, 1],
    start: values.start?.pixels ?? null,
    mask: values.start?.mask ?? null,
  };
}

// ---- links: the same names as in the app's

const LINKED = { class: "label", guidance: "guidance", images: "images", timesteps: "timesteps", sampler: "sampler", schedule: "schedule" };
Object.assign(LINKED, { difference: "difference", eta: "eta", seed: "seed", walk: "walk" });

// The values of a link over the defaults, and a sentence about those that it spells wrongly.
function readLink(query, about) {
  let values = defaultValues(about);
  const [ignored, known] = [[], []];
  for (const [key, name] of Object.entries(LINKED)) {
    if (!query.has(key)) continue;
    const text = query.get(key);
    const next = { ...values, [name]: name in LIMITS && name !== "walk" ? checkedOr(text, name, ignored) : text };
    if (name === "label" && about.classes.indexOf(text) < 0 && /^\d{1,4}$/.test(text)) next.label = about.classes[Number(text) - 1] ?? text;
    if (next[name] === undefined) continue;
    try {
      toSettings({ ...next, random: false }, about);
      values = { ...next, random: name === "seed" ? false : values.random };
      known.push(name);
    } catch (error) {
      ignored.push(`${key} (${error.message})`);
    }
  }
  return { values, isLinked: known.length > 0, problem: ignored.length ? `Ignored from the link: ${ignored.join("; ")}.` : "" };
}

function checkedOr(text, name, ignored) {
  try {
    return checkNumber(name, text);
  } catch (error) {
    ignored.push(`${name} (${error.message})`);
    return undefined;
  }
}

// ---- records and words

// What a saved file says about a run, named as in the library.
function toProvenance(settings, about, device) {
  const labels = settings.labels.some(Boolean) ? settings.labels : null;
  const label = labels && (new Set(labels).size === 1 ? labels[0] : labels);
  const names = labels && Object.fromEntries([...new Set(labels)].filter(Boolean).sort((a, b) => a - b).map((one) => [one, about.classes[one - 1]]));
  const identify = (values) => values && `crc32:${checksum(new Uint8Array(values.buffer)).toString(16)}`;
  return {
    checkpoint: about.name,
    sha256: about.sha256,
    device,
    backend: "onnxruntime-web",
    batch_size: settings.images,
    timesteps: settings.timesteps,
    sampler: settings.sampler,
    noise_schedule: settings.schedule,
    schedule_kwargs: settings.scheduleKwargs,
    time_difference: settings.timeDifference,
    eta: settings.eta,
    seed: settings.seed,
    walk_to: settings.walkTo,
    strength: settings.strength,
    label,
    guidance: settings.guidance,
    guidance_interval: settings.guidanceInterval,
    start: identify(settings.start),
    mask: identify(settings.mask),
    ...(names ? { classes: names } : {}),
  };
}

// A run's settings in one line, as the app has it.
function describeRun({ checkpoint, classes = {}, guidance, ...made }) {
  const names = Object.values(classes);
  const difference = Number(((made.time_difference * made.timesteps) / made.strength).toFixed(6));
  const last = made.seed + made.batch_size - 1;
  const seeds = made.batch_size === 1 ? `seed ${made.seed}` : `seeds ${made.seed} to ${last}`;
  return [
    checkpoint,
    names.length && (names.length <= 3 ? names.join(", ") : `${names.length} classes`),
    names.length && guidance !== 1 && `guidance ${guidance}`,
    `${made.timesteps} steps`,
    SAMPLER_TITLES[made.sampler],
    `${made.noise_schedule} schedule`,
    difference && `time difference ${difference}`,
    made.eta && `eta ${made.eta}`,
    made.walk_to === null ? seeds : `from seed ${made.seed} to ${made.walk_to}`,
  ].filter(Boolean).join(" · ");
}

// The log-SNR of a run against the step, for the chart, and those of the other schedules.
function toCurves(settings, { policy: { scale } }) {
  const { timesteps, strength, schedule, scheduleKwargs } = settings;
  const { t } = makePlan({ ...settings, scale });
  const steps = spread(timesteps, 200).map((i) => i + 1);
  const isDefault = Object.keys(scheduleKwargs).length === 0;
  const names = Object.keys(SCHEDULES).filter((name) => name !== schedule || !isDefault);
  const levels = (name) => spread(timesteps, 40).map((i) => [i + 1, levelAt(SCHEDULES[name](), strength * (1 - i / timesteps)).log_snr]);
  return { curve: steps.map((step) => [step, t[step - 1].log_snr]), others: Object.fromEntries(names.map((name) => [name, levels(name)])) };
}
