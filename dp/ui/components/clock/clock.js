// One clock for several players: where in their runs all of them stand. It finds them on the page, speaks to them in
// events, and asks the server for nothing.
const SECONDS = 4; // that a replay takes at 1x
const FEWEST = 100; // places of the slider, where the runs have fewer steps

const $ = (selector) => element.querySelector(selector);
const clock = $(".clock");
const [scrub, by, live] = [$(".scrub"), $(".by"), $(".live")];
scrub.step = "any";
scrub.setAttribute("aria-label", "Progress");
const arms = () => document.querySelectorAll(".player.arm");
const send = (type, detail) => arms().forEach((arm) => arm.dispatchEvent(new CustomEvent(type, { detail })));
let there = null; // what there is to play
let follow = true; // the newest frames, as they come
let playing = null;
let pending = false;
let comparison = null; // when the one that is shown began

// ---- what there is

function survey() {
  there = { live: false, steps: 0, share: 0, low: Infinity, high: -Infinity };
  send("survey", there);
  const idle = !there.steps;
  for (const control of [$(".back"), $(".play"), $(".forward"), scrub]) control.disabled = idle;
  live.disabled = idle || !there.live;
  live.setAttribute("aria-pressed", String(follow && there.live));
  scrub.max = Math.max(there.steps, FEWEST);
  if (follow) scrub.value = by.value === "step" ? there.share * scrub.max : scrub.max;
  say();
}

function say() {
  const at = place();
  const words = by.value === "step" ? `${Math.round(100 * at)} % of the run` : `log-SNR ${at.toFixed(2)}`;
  $(".where").textContent = there?.steps ? words : "";
  scrub.setAttribute("aria-valuetext", words);
}

// Where the slider stands, in what the runs are aligned by.
function place() {
  const share = Number(scrub.value) / Number(scrub.max);
  return by.value === "step" || !there?.steps ? share : there.low + share * (there.high - there.low);
}

function stand() {
  send("clock", { at: follow ? null : place(), by: by.value });
  live.setAttribute("aria-pressed", String(follow && there?.live));
  clock.dataset.at = follow ? "end" : place();
  say();
}

// ---- transport

function go(to) {
  pause();
  scrub.value = to;
  follow = Boolean(there?.live) && Number(scrub.value) >= there.share * scrub.max;
  stand();
}

function step(by_steps) {
  const one = scrub.max / Math.max(there.steps, 1);
  go(Math.round(Number(scrub.value) / one + by_steps) * one);
}

function play() {
  if (playing) return pause();
  if (!there?.steps) return;
  follow = false;
  let at = Number(scrub.value) >= Number(scrub.max) ? 0 : Number(scrub.value);
  let before = null;
  clock.classList.add("playing");
  $(".play").setAttribute("aria-label", "Pause");
  const advance = (now) => {
    at += (((now - (before ?? now)) / 1000) * scrub.max * Number($(".speed").value)) / SECONDS;
    before = now;
    scrub.value = at;
    stand();
    if (at >= Number(scrub.max)) pause();
    else playing = requestAnimationFrame(advance);
  };
  playing = requestAnimationFrame(advance);
}

function pause() {
  if (playing) cancelAnimationFrame(playing);
  playing = null;
  clock.classList.remove("playing");
  $(".play").setAttribute("aria-label", "Play");
}

const keys = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: () => go(0),
  End: () => go(scrub.max),
  " ": play,
  Escape: () => send("image", null),
};
clock.addEventListener("keydown", (event) => {
  const own = event.target.closest("button") && event.key === " "; // it answers itself
  if (!keys[event.key] || own || event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey || !there?.steps) return;
  event.preventDefault();
  keys[event.key]();
});
scrub.addEventListener("input", () => go(scrub.value));
$(".back").addEventListener("click", () => step(-1));
$(".forward").addEventListener("click", () => step(1));
$(".play").addEventListener("click", play);
live.addEventListener("click", () => {
  pause();
  follow = true;
  stand();
});
by.addEventListener("change", () => {
  pause();
  follow = Boolean(there?.live);
  survey();
  scrub.value = scrub.max;
  stand();
});
$(".pane").addEventListener("change", () => arms().forEach((arm) => arm.classList.toggle("noise", $(".pane").value === "noisy")));

// ---- from the players

const heard = {
  news: () => {
    if (pending) return; // many speak at once
    pending = true;
    requestAnimationFrame(() => ((pending = false), survey()));
  },
  chosen: ({ detail }) => send("image", detail),
};
for (const [type, listener] of Object.entries(heard)) {
  // This component may be made anew with its tab.
  document.addEventListener(type, (event) => clock.isConnected && event.target.matches?.(".player.arm") && listener(event));
}

// ---- the table; names are put in as text

function table() {
  const { rows, longest, began, pairs, is_over } = props.value || {};
  clock.setAttribute("aria-busy", String(!is_over && Boolean(rows)));
  if (!rows) return;
  if (began !== comparison) {
    comparison = began;
    pause();
    follow = true;
    document.querySelector(".arms").classList.toggle("pairs", pairs);
  }
  $("table").hidden = false;
  $(".far").textContent = longest ? `distance to ${longest}` : "distance";
  $("tbody").replaceChildren(
    ...rows.map((row) => {
      const line = document.createElement("tr");
      row.forEach((text, i) => (line.appendChild(document.createElement(i ? "td" : "th")).textContent = text));
      line.firstChild.scope = "row";
      return line;
    }),
  );
}
watch("value", table);
table();
