// One clock for all variants on the page: it sets how far into their runs the players stand. It finds the players by
// their class and talks to them in DOM events (see variant.js); it sends the server nothing.
const REPLAY_S = 4; // duration of a replay at 1x
const MIN_POSITIONS = 100; // of the slider, if the runs have fewer steps

const $ = (selector) => element.querySelector(selector);
const root = $(".clock");
const [scrub, alignBy, pane] = [$(".scrub"), $(".align-by"), $(".pane")];
let playable = null; // what the variants have to play: { isLive, steps, fraction, levels, runs }
let isFollowing = true; // show the newest frames as they arrive
let isCollecting = false; // in the next animation frame
let shown = null; // the id of the comparison that is shown

const variants = () => document.querySelectorAll(".player.variant");
const send = (type, detail) => variants().forEach((player) => player.dispatchEvent(new CustomEvent(type, { detail })));
const end = () => Number(scrub.max);
const isAtSteps = () => alignBy.value === "step";

const transport = createTransport({
  root,
  rate: () => end() / REPLAY_S,
  end,
  show: place,
  onEnd: () => place(end()),
  playFrom,
  goTo,
  step,
  goLive: () => {
    transport.pause();
    isFollowing = true;
    seek();
  },
  keys: { Escape: () => send("clock-select", null) },
  shortcuts: [
    ["← →", "one step back, forward"],
    ["Home, End", "first step, last step"],
    ["Space", "play, pause"],
    ["Esc", "all images"],
  ],
  isIgnored: () => !playable?.steps,
});
const charts = createVariantCharts({ root, goTo: (share) => isAtSteps() && goTo(share * end()) });
const map = createVariantMap({ root, server, runs: () => playable?.runs || [], select: (row) => send("clock-select", row) });
const recording = createRecording({
  root,
  server,
  variants,
  isIdle: () => !props.value?.rows,
  showTable,
});
scrub.step = "any";
scrub.setAttribute("aria-label", "Progress");

// ---- the variants

function collect() {
  playable = { isLive: false, steps: 0, fraction: 0, levels: [], runs: [] };
  send("clock-collect", playable);
  playable.runs.forEach((run, i) => run.player.style.setProperty("--variant-color", (run.color = VARIANT_COLORS[i])));
  playable.levels = [...new Set(playable.levels)].sort((a, b) => a - b);
  updateTransport();
  scrub.max = Math.max(playable.steps, MIN_POSITIONS);
  if (isFollowing) scrub.value = isAtSteps() ? playable.fraction * end() : end();
  caption();
}

function updateTransport() {
  transport.update({ isEnabled: Boolean(playable?.steps), isLive: Boolean(playable?.isLive), isFollowing });
}

function collectSoon() {
  if (isCollecting) return; // several variants change at once
  isCollecting = true;
  requestAnimationFrame(() => {
    isCollecting = false;
    collect();
  });
}

const listeners = { "variant-changed": collectSoon, "variant-selected": ({ detail }) => selectImage(detail) };

function selectImage(row) {
  send("clock-select", row);
  map.selectImage(row);
}

for (const [type, listener] of Object.entries(listeners))
  document.addEventListener(type, (event) => {
    // Gradio may create this component again, with its tab.
    if (root.isConnected && event.target.matches?.(".player.variant")) listener(event);
  });

// ---- the position, in the quantity by which the runs are aligned

// The first two noise levels of a run may be as far apart as all the others. So the slider spaces the levels that occur
// evenly, and every part of it changes something.
function position() {
  const fraction = Number(scrub.value) / end();
  if (isAtSteps() || !playable?.steps) return fraction;
  const { levels } = playable;
  const place = fraction * (levels.length - 1);
  const [below, above] = [levels[Math.floor(place)], levels[Math.ceil(place)]];
  return below + (place % 1) * (above - below);
}

function seek() {
  send("clock-seek", { at: isFollowing ? null : position(), alignBy: alignBy.value });
  root.dataset.at = isFollowing ? "end" : position();
  updateTransport();
  caption();
}

function caption() {
  const text = isAtSteps() ? `${Math.round(100 * position())}% of the run` : `log-SNR ${position().toFixed(2)}`;
  $(".progress").textContent = playable?.steps ? text : "";
  scrub.setAttribute("aria-valuetext", text);
  charts.showRuns(playable?.runs || []);
  map.update();
}

// ---- the controls

function place(value) {
  scrub.value = value;
  seek();
}

function goTo(value) {
  transport.pause();
  scrub.value = value;
  isFollowing = Boolean(playable?.isLive) && Number(scrub.value) >= playable.fraction * end();
  seek();
}

function step(by) {
  const size = end() / Math.max(playable.steps, 1);
  goTo(Math.round(Number(scrub.value) / size + by) * size);
}

function playFrom() {
  if (!playable?.steps) return null;
  isFollowing = false;
  return Number(scrub.value) >= end() ? 0 : Number(scrub.value);
}

alignBy.addEventListener("change", () => {
  transport.pause();
  isFollowing = Boolean(playable?.isLive);
  collect();
  place(end());
});
pane.addEventListener("change", () => {
  for (const player of variants()) player.classList.toggle("noise", pane.value === "noisy");
});

// ---- the table; names are inserted as text

function receive() {
  if (props.value?.is_lost) recording.begin();
  if (!props.value?.rows) return root.setAttribute("aria-busy", "false");
  if (props.value.comparison !== shown) remember("dp-comparison", props.value.comparison);
  showTable(props.value);
}

function showTable({ comparison, rows, longest, pairs, settings, is_over }) {
  root.setAttribute("aria-busy", String(!is_over));
  if (comparison !== shown) {
    shown = comparison;
    root.dataset.comparison = comparison || "";
    if (comparison) send("clock-clear");
    transport.pause();
    isFollowing = true;
    document.querySelector(".variants").classList.toggle("pairs", pairs);
  }
  $("table").hidden = false;
  $(".run-settings").textContent = settings;
  $(".distance").textContent = longest ? `distance to ${longest}` : "distance";
  $("tbody").replaceChildren(...rows.map(tableRow));
  charts.showTable(rows, pairs);
}

function tableRow(texts) {
  const row = document.createElement("tr");
  row.append(...texts.map((text, i) => Object.assign(document.createElement(i ? "td" : "th"), { textContent: text })));
  row.firstChild.scope = "row";
  return row;
}

watch("value", receive);
receive();

// The comparison before the page was loaded again.
const before = remembered("dp-comparison");
if (!props.value?.rows) requestAnimationFrame(() => (before ? trigger("reattach", { comparison: before }) : recording.begin()));
