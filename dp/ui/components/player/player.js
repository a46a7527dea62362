// The trajectory player. Its source sends text, numbers and images, and none of them is inserted as markup. The frames
// of a run stay in the page, so playing and scrubbing send no requests.
//
// A source is the app's server, or a worker that runs the model in an exported page (web/source.js). It sets
// `props.value` and answers the functions in `server`; the player asks it for runs with `trigger`.
const SILENCE_MS = 8000; // without a value of a live run, after which the page asks for the run again
const REPLAY_S = 4; // duration of a replay of the whole run at 1x
const LONG_RUN_S = 5; // a longer run shows the time that is left
const MAX_FRAMES = 256; // kept of a live run; at its end, those that the server has kept replace them

const $ = (selector) => element.querySelector(selector);
const root = $(".player");
const state = {
  run: createRun(null), // the run that is shown
  value: { state: "idle" }, // the newest value from the server
  isFollowing: true, // show the newest frame as it arrives
  position: -1, // of the frame that is shown, in run.frames
  selected: null, // the image that is shown alone: { row, sheets }; sheets: its lossless frames, once loaded
};
let lastValueAt = null; // when a live run last sent a value
let isStopped = false; // values that arrive after a stop are ignored until the next run begins

const browser = props.can_compute ? createBrowserRuns({ state, server, receive, isLive: () => isLive() }) : null;
const source = browser?.server || server; // of frames and files

const isLive = () => ["waiting", "running"].includes(state.value.state);
const lastPosition = () => state.run.frames.length - 1;
const refresh = () => seek(state.position);

const panes = createPanes({ root, state });
const charts = createCharts({ root, state, goTo });
const selection = createSelection({ root, state, server: source, panes, refresh, goTo });
createFiles({ root, state, server: source, announce });
const rerun = createRerun({ root, state, panes, trigger, refresh });
const transport = createTransport({
  root,
  rate: () => Math.max(state.run.frames.length / REPLAY_S, 5),
  end: lastPosition,
  show: (at) => Math.floor(at) !== state.position && seek(Math.floor(at)),
  onEnd: () => {
    state.isFollowing = isLive();
    seek(lastPosition());
  },
  playFrom,
  goTo,
  step: (by) => goTo(state.position + by),
  goLive: () => goTo(lastPosition()),
  keys: {
    Enter: () => state.run.frames.length && !state.selected && selection.showImage(0),
    ArrowUp: () => selection.showImage(Math.max(state.selected.row - 1, 0)),
    ArrowDown: () => selection.showImage(Math.min(state.selected.row + 1, state.run.images - 1)),
    Escape: selection.showAll,
  },
  shortcuts: [
    ["← →", "one step back, forward"],
    ["Home, End", "first step, last step"],
    ["Space", "play, pause"],
    ["Enter", "look at one image"],
    ["↑ ↓", "the image before, after"],
    ["Esc", "all images"],
  ],
  isIgnored: (key) => !state.selected && (key === "ArrowUp" || key === "ArrowDown"), // they scroll the page
});
const walk = createWalk({ root, state, selection, pause: transport.pause });
const recording = props.has_recording ? createRecording({ server, isIdle: () => state.value.state === "idle", showRun: showRecorded, seek }) : null;
if (props.is_variant) createVariant({ root, state, props, watch, isLive, seek, selection, changeOf: charts.changeOf, showRecorded });
else createPanels({ root, state, server, props, panes, selection, isWalking: walk.isPlaying, seek, goTo, pause: transport.pause });

// ---- values from the server

function receive(next) {
  const begins = (next.state === "waiting" && next.heartbeat === undefined) || (next.run && next.run !== state.run.id);
  if (next.state === "stopped" && !isLive() && !begins) return; // the run ended before it could be stopped
  if (next.state !== "idle") recording?.stop();
  if (begins) begin(next);
  else if (isStopped) return;
  isStopped = next.state === "stopped";
  state.value = next;
  lastValueAt = isLive() ? performance.now() : null;
  if (next.settings) state.run.settings = next.settings;
  if (next.seed !== undefined) state.run.seed = next.seed;
  if (next.src) {
    const { run } = state;
    [run.timesteps, run.images] = [next.timesteps, next.count];
    if (!next.replay) run.first ||= { index: next.index, at: performance.now() };
    if (next.curve) [run.curve, run.others] = [next.curve, next.others];
    if (next.classes) run.classes = next.classes;
    insert({ ...next, x0: next.src, x_t: next.noisy });
  }
  if (state.isFollowing) seek(lastPosition());
  else caption();
  if (next.state === "running" && next.src && !next.replay) state.run.measureSpeed(next.index);
  const { run } = state;
  if (!isLive() && run.id && run.frames.length && !run.isRecalled) recall(run);
}

// Begin another run. Its predecessor's images stay on the canvases until its first frame arrives.
function begin({ run: id, walk: isWalk, until }) {
  const isLocal = Boolean(browser?.isLocal(id));
  if (id && !props.is_variant) {
    root.dataset.run = id;
    $(".storage-warning").hidden = remember("dp-run", isLocal ? "" : id);
  }
  state.run = Object.assign(createRun(id || null), { isWalk: Boolean(isWalk), until: until || Infinity, isLocal });
  root.classList.toggle("local", isLocal);
  [state.isFollowing, state.position] = [true, -1];
  delete root.dataset.kept;
  panes.invalidate();
  selection.showAll();
  rerun.begin();
}

function insert(frame) {
  const { run } = state;
  const { place, isUpdate } = run.insertFrame(frame);
  if (isUpdate) {
    if (panes.isDrawn(run.frames[place])) panes.invalidate(); // the last frame again, lossless
    return;
  }
  if (place <= state.position) state.position += 1;
  if (run.frames.length > MAX_FRAMES && !transport.isPlaying()) {
    const shown = run.frames[state.position];
    run.decimate(shown);
    state.position = run.frames.indexOf(shown);
  }
}

// Replace the frames of a run that has ended by all those that the server has kept.
async function recall(run) {
  run.isRecalled = true;
  const last = run.frames.at(-1);
  const kept = [];
  for (let total = 1; kept.length < total; ) {
    const part = await source.frames({ run: run.id, start: kept.length });
    if (!part?.frames?.length || run !== state.run) return; // the frames that arrived live remain
    kept.push(...part.frames);
    total = part.total;
  }
  while (kept.at(-1).index > run.until) kept.pop();
  transport.pause(); // its position is one among the old frames
  const shown = run.frames[state.position];
  run.frames = kept;
  insert(last); // its images are lossless
  state.isFollowing ||= !shown;
  const place = shown ? run.frames.findLastIndex((frame) => frame.index <= shown.index) : lastPosition();
  panes.invalidate();
  seek(Math.max(place, 0));
  if (state.selected) selection.showImage(state.selected.row);
  await panes.whenDrawn();
  if (run === state.run) root.dataset.kept = run.frames.length;
}

// Show a run that was recorded: its timesteps, images and frames. It has no id, as the server does not know it.
function showRecorded(recorded) {
  state.run = Object.assign(createRun(null), recorded);
  state.value = { state: "recorded" };
  panes.invalidate();
  seek(lastPosition());
}

// ---- the frame that is shown

function seek(position) {
  state.position = Math.max(-1, Math.min(position, lastPosition()));
  caption();
  panes.draw();
}

function goTo(position) {
  recording?.stop();
  transport.pause();
  state.isFollowing = isLive() && position >= lastPosition();
  seek(Math.max(position, 0));
}

function playFrom() {
  if (state.run.frames.length < 2) return null;
  recording?.stop();
  state.isFollowing = false;
  if (state.position >= lastPosition()) seek(0);
  return state.position;
}

function caption() {
  const { run, value, position } = state;
  const shown = run.frames[position];
  const { index, time, log_snr } = shown || { index: 0 };
  const speed = isLive() && run.stepsPerSecond && !props.is_variant ? ` · ${run.stepsPerSecond.toFixed(1)} steps/s${timeLeft()}` : "";
  $(".step").textContent = value.message || describe(value.state, shown);
  $(".run-settings").textContent = run.settings;
  const isLast = index === run.timesteps;
  $(".noisy-title").textContent = isLast ? "What the model saw" : "What the model sees";
  const title = isLast ? "The result" : "What it predicts";
  $(".prediction-title").textContent = rerun.isShown() ? "The previous result" : title;
  $(".noise-level").textContent = shown ? `t ${time.toFixed(3)} · log-SNR ${log_snr.toFixed(2)}${speed}` : "";
  $(".bar").setAttribute("aria-valuenow", (index / run.timesteps).toFixed(3));
  $(".bar").firstElementChild.style.transform = `scaleX(${index / run.timesteps})`;
  const isBusy = String(isLive());
  if (root.getAttribute("aria-busy") !== isBusy) root.setAttribute("aria-busy", isBusy); // app.css depends on it
  if (!["running", "recorded"].includes(value.state)) $(".announcement").textContent = $(".step").textContent;
  if (!shown || panes.isDrawn(shown)) [root.dataset.step, root.dataset.state] = [index, value.state];
  updateTransport(index);
  charts.draw();
}

function timeLeft() {
  const { timesteps, stepsPerSecond, frames } = state.run;
  if (timesteps / stepsPerSecond < LONG_RUN_S) return "";
  return ` · ${formatDuration((timesteps - frames.at(-1).index) / stepsPerSecond)} left`;
}

function describe(name, shown) {
  const { run } = state;
  const [newest, place] = [run.frames.at(-1), shown ? `step ${shown.index}/${run.timesteps}` : "Waiting for the first step…"];
  const isBehind = shown && shown !== newest;
  const texts = {
    idle: "Nothing drawn yet",
    waiting: place,
    running: isBehind ? `${place} · live at ${newest.index}` : place,
    done: isBehind || run.until < run.timesteps ? place : `${place} · done`,
    stopped: isBehind ? place : newest ? `stopped at ${shown?.index ?? 0}/${run.timesteps}` : "stopped before the first step",
    failed: "The run failed",
    recorded: props.is_variant ? place : `Recorded, ${place}. Press Generate for your own.`,
  };
  return texts[name];
}

// Show a text until the next value or frame.
function announce(text) {
  $(".step").textContent = $(".announcement").textContent = text;
}

function updateTransport(index) {
  const { run, position, isFollowing } = state;
  transport.update({ isEnabled: run.frames.length > 1, isLive: isLive(), isFollowing });
  const scrub = $(".scrub");
  scrub.max = Math.max(lastPosition(), 0);
  scrub.value = Math.max(position, 0);
  scrub.setAttribute("aria-valuetext", `step ${index} of ${run.timesteps}`);
  $(".save").disabled = !run.id || !run.frames.length;
  rerun.update({ isLive: isLive() });
  root.dataset.follow = isFollowing;
}

// A live run sends a value every second. After a silence (the laptop slept, the network failed) the page asks for it.
setInterval(() => {
  if (lastValueAt === null || state.run.isLocal || performance.now() - lastValueAt < SILENCE_MS) return;
  lastValueAt = performance.now();
  state.run.stepsPerSecond = null;
  caption();
  announce("No answer from the server. Trying again…");
  trigger("reconnect");
}, 1000);

watch("value", () => {
  if (props.value?.state && !browser?.take(props.value)) receive(props.value);
});
