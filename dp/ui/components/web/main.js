// An exported page: a player whose source is a model that runs here.
const about = JSON.parse(document.querySelector("#about").textContent);
const form = document.querySelector("form");
const [generate, stopButton, statusLine] = ["#generate", "#stop", ".status"].map((selector) => form.querySelector(selector));
const { values: opened, isLinked, problem } = readLink(new URLSearchParams(location.search), about);

const player = createProps({ value: { state: "idle" }, is_variant: false, can_replay: false, has_recording: true });
const source = createSource({ about, emit: (value) => (player.props.value = value), onChange: showProgress });
const start = createProps({ value: null, side: about.network.image_size, levels: startLevels() });
const controls = createControls({ form, about });

const BUILDS_OF = { any: ["webgpu", "wasm"], webgpu: ["webgpu"], wasm: ["wasm"] };

// The schedule from t = 0 to 1, for the preview of a start image.
function startLevels() {
  const { noise_schedule: name, schedule_kwargs: keywords, scale } = about.policy;
  return Array.from({ length: 101 }, (_, i) => levelAt(SCHEDULES[name](keywords), i / 100, scale)).map((at) => [at.t, at.alpha, at.sigma, at.log_snr]);
}

async function run(changes = {}) {
  try {
    const values = { ...controls.read(), ...changes };
    const settings = toSettings({ ...values, start: await readStart(start.props.value, about.network) }, about);
    controls.setSeed(settings.seed);
    source.start(settings, BUILDS_OF[values.device]);
  } catch (error) {
    showProgress({ isBusy: false, progress: null, problem: toSentence(error.message) });
  }
}

function showProgress({ isBusy, progress, problem, build }) {
  const toMegabytes = (bytes) => (bytes / 1e6).toFixed(1);
  [generate.hidden, stopButton.hidden] = [isBusy, !isBusy];
  const [received, total] = progress || [];
  const fetching = received < total ? `Fetching the model, once: ${toMegabytes(received)} of ${toMegabytes(total)} MB` : "Preparing the model…";
  const device = build && `Computed on your own ${build === "webgpu" ? "graphics processor" : "processor"}.`;
  const starting = isBusy && !build ? "Starting…" : "";
  statusLine.textContent = problem || (progress ? fetching : device || starting);
  statusLine.classList.toggle("problem", Boolean(problem));
}

function copyLink() {
  const { label, guidance, images, timesteps, sampler, seed, random, schedule, difference, eta, walk } = controls.read();
  return COPY_LINK(about.name, label, guidance, images, timesteps, sampler, seed, random, schedule, difference, sampler === "ddim" ? Number(eta) : 0, walk, start.props.value);
}

function describeModel() {
  const { dataset, step, network } = about;
  const facts = [dataset && `Trained on ${dataset}`, step && `${formatNumber(step)} training steps`, `${network.image_size} × ${network.image_size} pixels`];
  return [...facts.filter(Boolean), `${(about.first_run_bytes / 1e6).toFixed(0)} MB to fetch at the first run`].join(" · ");
}

document.querySelector("h1").textContent = about.name;
form.querySelector(".model").textContent = describeModel();
showCard(document.querySelector(".card"), about.card);
controls.write(opened);
statusLine.textContent = problem;
if (isLinked) OPEN_LINK("suggest");
createPlayer({
  element: document.querySelector("#player"),
  ...player,
  server: source.server,
  trigger: (event, { seed } = {}) => event === "rerun" && run(seed === null ? { random: true } : { random: false, seed }),
});
createStartImage({ element: document.querySelector("#start"), ...start, trigger: () => {}, server: {} });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
stopButton.addEventListener("click", source.stop);
form.querySelector("#link").addEventListener("click", copyLink);
// Kept for a visit without a connection, where the browser allows it.
navigator.serviceWorker?.register("offline.js").catch(() => {});
