// The trajectory player. What comes from the server is text, numbers and pictures; nothing is ever put into the page as
// markup. The frames of a run stay here: watching and scrubbing ask the server for nothing.
const SILENCE = 8000; // milliseconds without a word of a run that goes on, after which the page asks for it again
const MOMENTS = 10; // on the strip of a single image
const SECONDS = 4; // that a replay of the whole run takes at 1x
const MOST = 256; // frames held while a run goes on; at its end those that the server has kept take their place

const $ = (selector) => element.querySelector(selector);
const player = $(".player");
const panes = { x_t: $(".noisy canvas"), x0: $(".guess canvas") };
const [scrub, speed, live, save, strip] = [$(".scrub"), $(".speed"), $(".live"), $(".save"), $(".strip canvas")];

let run; // the run that is shown
let value = { state: "idle" }; // the newest word from the server
let follow = true; // show the newest frame as it comes
let position = -1; // of the frame that is shown, in run.frames
let single = null; // the image looked at alone: { row, sheets } with `sheets` its lossless frames, once they have come
let drawing = null; // until the frame that is wanted has been drawn
let drawn = null;
let heard = null; // when the server last spoke of a run that goes on
let stopped = false; // until the next run begins, what was still on its way comes too late
let playing = null;
let saving = false;
const kinds = $(".kinds");

const fresh = (id) => ({ id, frames: [], curve: [], timesteps: 1, images: 1, until: Infinity, first: null, whole: false });
const columns = () => Math.ceil(Math.sqrt(run.images));
const picture = (src) => createImageBitmap(new Blob([bytes(src)]), { colorSpaceConversion: "none" });
const isLive = () => value.state === "waiting" || value.state === "running";
run = fresh(null);

// Of a data URI. To fetch it would be shorter, and keeps every picture in memory.
function bytes(uri) {
  const text = atob(uri.slice(uri.indexOf(",") + 1));
  const all = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) all[i] = text.charCodeAt(i);
  return all;
}

// ---- frames in

function receive(next) {
  const begins = (next.state === "waiting" && next.beat === undefined) || (next.run && next.run !== run.id);
  if (next.state === "stopped" && !isLive() && !begins) return; // it came to its end before
  if (begins) {
    if (next.run && !props.arm) remember(next.run);
    run = fresh(next.run || null); // the pictures of the run before stay until its first frame, its numbers go
    [follow, position, drawn] = [true, -1, null];
    run.walk = Boolean(next.walk);
    run.until = next.until || Infinity;
    leave();
  } else if (stopped) return;
  stopped = next.state === "stopped";
  value = next;
  heard = isLive() ? performance.now() : null;
  if (next.src) {
    run.timesteps = next.timesteps;
    run.images = next.count;
    run.first = run.first || { index: next.index, at: performance.now() };
    if (next.curve) run.curve = next.curve;
    put({ ...next, x0: next.src, x_t: next.noisy });
  }
  if (follow) seek(run.frames.length - 1);
  else caption();
  if (next.state === "running") speedOf(next.index);
  if (!isLive() && run.id && run.frames.length && !run.whole) recall(run);
}

function put(frame) {
  const after = run.frames.findLastIndex((other) => other.index <= frame.index);
  const same = after >= 0 && run.frames[after].index === frame.index;
  if (same) {
    Object.assign(run.frames[after], frame);
    if (drawn === run.frames[after]) drawn = null; // the last one again, lossless
  } else {
    run.frames.splice(after + 1, 0, frame);
    if (after + 1 <= position) position += 1;
    if (run.frames.length > MOST) thin();
  }
}

// Every other frame goes, but not the one that is shown, the first or the newest.
function thin() {
  if (playing) return; // a replay counts in these frames
  const shown = run.frames[position];
  run.frames = run.frames.filter((frame, i, all) => i % 2 === 0 || frame === shown || i === all.length - 1);
  position = run.frames.indexOf(shown);
}

// The whole run, once it has ended: every step that the server has kept.
async function recall(mine) {
  mine.whole = true;
  const last = mine.frames[mine.frames.length - 1];
  const kept = [];
  for (let total = 1; kept.length < total; ) {
    const part = await server.frames({ run: mine.id, start: kept.length });
    if (!part?.frames?.length || mine !== run) return; // what came while it ran is still here
    kept.push(...part.frames);
    total = part.total;
  }
  while (kept[kept.length - 1].index > mine.until) kept.pop();
  pause(); // a replay counts in the frames of before
  const shown = run.frames[position];
  run.frames = kept;
  put(last); // its picture is lossless
  follow = follow || !shown;
  const at = shown ? run.frames.findLastIndex((frame) => frame.index <= shown.index) : run.frames.length - 1;
  drawn = null; // what is on the canvas may still be a frame before it
  seek(Math.max(at, 0));
  if (single) look(single.row);
  await drawing;
  if (mine === run) player.dataset.kept = run.frames.length;
}

// For a page that is reloaded or loses its connection. A cross-site frame, which a Space is, may have no storage.
function remember(id) {
  player.dataset.run = id;
  try {
    sessionStorage.setItem("dp-run", id);
  } catch {
    $(".forgets").hidden = false;
  }
}

// ---- the frame that is shown

function seek(to) {
  position = Math.max(-1, Math.min(to, run.frames.length - 1));
  caption();
  drawing ||= pump();
}

async function pump() {
  await null; // `drawing` is this
  while (run.frames[position] && run.frames[position] !== drawn) {
    const frame = run.frames[position];
    drawn = frame; // before the pictures are read: who wants it drawn again meanwhile says so
    await draw(frame).catch(console.warn); // a frame that cannot be read is one frame less
    player.dataset.step = frame.index;
    if (frame === run.frames[position]) player.dataset.state = value.state; // else a newer one is to be drawn yet
    await new Promise(requestAnimationFrame); // let the browser paint before the next one
  }
  drawing = null;
}

async function draw(frame) {
  const at = single?.sheets?.indices.indexOf(frame.index) ?? -1;
  for (const [key, canvas] of Object.entries(panes)) {
    if (at >= 0) tile(canvas, single.sheets[key], at, single.sheets.columns);
    else if (frame[key]) {
      const image = await picture(frame[key]);
      if (single) tile(canvas, image, single.row, columns());
      else paint(canvas, image, 0, 0, image.width, image.height);
      image.close();
    }
  }
  panes.x_t.setAttribute("aria-label", `Noisy images at step ${frame.index} of ${run.timesteps}`);
  panes.x0.setAttribute("aria-label", `Predicted images at step ${frame.index} of ${run.timesteps}`);
  player.classList.add("drawn");
}

function paint(canvas, image, x, y, width, height) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height); // a picture may be transparent
  pen.drawImage(image, x, y, width, height, 0, 0, width, height);
}

function tile(canvas, image, number, across) {
  const side = image.width / across;
  paint(canvas, image, (number % across) * side, Math.floor(number / across) * side, side, side);
}

// ---- words

function caption() {
  const { state, message } = value;
  const shown = run.frames[position];
  const newest = run.frames[run.frames.length - 1];
  const at = shown || { index: 0 };
  const behind = shown && newest && shown !== newest;
  const place = shown ? `step ${at.index}/${run.timesteps}` : "Waiting for the first step…";
  const words = {
    idle: "Nothing drawn yet",
    waiting: place,
    running: behind ? `${place} · live at ${newest.index}` : place,
    done: behind || run.until < run.timesteps ? place : `${place} · done`,
    stopped: behind ? place : newest ? `stopped at ${at.index}/${run.timesteps}` : "stopped before the first step",
    failed: "The run failed",
  };
  $(".step").textContent = message || words[state];
  $(".what").textContent = at.index === run.timesteps ? "The result" : "What it predicts";
  $(".where").textContent = shown ? `t ${at.time.toFixed(3)} · log-SNR ${at.log_snr.toFixed(2)}${pace()}` : "";
  $(".bar").setAttribute("aria-valuenow", (at.index / run.timesteps).toFixed(3));
  $(".bar").firstElementChild.style.transform = `scaleX(${at.index / run.timesteps})`;
  const busy = String(isLive());
  if (player.getAttribute("aria-busy") !== busy) player.setAttribute("aria-busy", busy); // the page listens for it
  if (state !== "running") $(".news").textContent = $(".step").textContent;
  if (!shown) [player.dataset.step, player.dataset.state] = [0, state];
  else if (shown === drawn) [player.dataset.step, player.dataset.state] = [at.index, state];
  controls(at);
  chart();
}

function pace() {
  return isLive() && run.pace ? ` · ${run.pace.toFixed(1)} steps/s` : "";
}

function speedOf(index) {
  const seconds = (performance.now() - run.first?.at) / 1000;
  if (run.first && index > run.first.index && seconds > 0.2) run.pace = (index - run.first.index) / seconds;
}

function controls(at) {
  const few = run.frames.length < 2;
  for (const button of [$(".back"), $(".play"), $(".forward"), scrub]) button.disabled = few;
  live.disabled = few || !isLive();
  save.disabled = !run.id || !run.frames.length;
  live.setAttribute("aria-pressed", String(follow && isLive()));
  scrub.max = Math.max(run.frames.length - 1, 0);
  scrub.value = Math.max(position, 0);
  scrub.setAttribute("aria-valuetext", `step ${at.index} of ${run.timesteps}`);
  player.dataset.follow = follow;
}

// ---- charts: against the step, with the cursor where the shown frame is

function chart() {
  const style = getComputedStyle(player);
  const moved = run.frames.slice(1).map((frame) => {
    const values = frame.moved || [];
    const mean = values.reduce((sum, x) => sum + x, 0) / (values.length || 1);
    return { x: frame.index, y: single ? (values[single.row] ?? mean) : mean };
  });
  $(".whose").textContent = single ? ` (image ${single.row + 1})` : "";
  const snr = run.curve.length ? run.curve.map(([x, y]) => ({ x, y })) : run.frames.map((f) => ({ x: f.index, y: f.log_snr }));
  line($(".curve"), snr, style.getPropertyValue("--color-accent"), true);
  line($(".moved"), moved, "#d97706", false);
}

function line(canvas, points, colour, signed) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const ys = points.map((point) => point.y);
  const [low, high] = [Math.min(0, ...ys), Math.max(1e-6, ...ys)];
  const x = (step) => 6 + ((width - 12) * (step - 1)) / Math.max(run.timesteps - 1, 1);
  const y = (v) => height - 6 - ((height - 12) * (v - low)) / (high - low);
  pen.strokeStyle = getComputedStyle(player).getPropertyValue("--border-color-primary");
  if (signed) stroke(pen, [[6, y(0)], [width - 6, y(0)]]);
  const shown = run.frames[position];
  if (shown) {
    pen.strokeStyle = getComputedStyle(player).getPropertyValue("--body-text-color-subdued");
    stroke(pen, [[x(shown.index), 0], [x(shown.index), height]]);
  }
  [pen.strokeStyle, pen.lineWidth, pen.lineJoin] = [colour, 2, "round"];
  stroke(pen, points.map((point) => [x(point.x), y(point.y)]));
  pen.lineWidth = 1;
}

function stroke(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

for (const canvas of element.querySelectorAll(".chart canvas")) {
  canvas.addEventListener("click", (event) => {
    const share = (event.offsetX - 6) / Math.max(canvas.clientWidth - 12, 1);
    const step = 1 + share * (run.timesteps - 1);
    const nearest = run.frames.reduce((best, f, i) => (Math.abs(f.index - step) < Math.abs(run.frames[best].index - step) ? i : best), 0);
    go(nearest);
  });
}
new ResizeObserver(chart).observe(player);

// ---- one image alone, and its strip through time

function look(row) {
  single = { row, sheets: null };
  player.classList.add("single");
  [player.dataset.image, drawn] = [row, null];
  seek(position);
  const mine = single;
  if (run.whole && run.id)
    server.closeup({ run: run.id, row }).then(async (sheets) => {
      if (!sheets || mine !== single) return;
      const read = { ...sheets, x_t: await picture(sheets.x_t), x0: await picture(sheets.x0) };
      if (mine !== single) return;
      mine.sheets = read;
      drawn = null;
      seek(position);
      film(mine.sheets);
    }, console.warn);
}

function leave() {
  if (!single) return;
  [single, drawn] = [null, null];
  player.classList.remove("single");
  delete player.dataset.image;
  $(".strip").hidden = true;
  seek(position);
}

function moments(count) {
  const many = Math.min(MOMENTS, count);
  return Array.from({ length: many }, (_, i) => Math.round((i * (count - 1)) / Math.max(many - 1, 1)));
}

function film(sheets) {
  const side = sheets.x0.width / sheets.columns;
  const chosen = moments(sheets.indices.length);
  $(".strip").hidden = false;
  [strip.width, strip.height] = [chosen.length * (side + 1) - 1, side];
  const pen = strip.getContext("2d");
  chosen.forEach((at, i) => {
    const [x, y] = [(at % sheets.columns) * side, Math.floor(at / sheets.columns) * side];
    pen.drawImage(sheets.x0, x, y, side, side, i * (side + 1), 0, side, side);
  });
}

for (const canvas of Object.values(panes)) {
  canvas.addEventListener("click", (event) => {
    if (single) return leave();
    if (!run.frames.length || run.images < 2) return;
    const across = columns();
    const rows = Math.ceil(run.images / across);
    const side = Math.min(canvas.clientWidth / across, canvas.clientHeight / rows); // the picture lies in the middle
    const column = Math.floor((event.offsetX - (canvas.clientWidth - across * side) / 2) / side);
    const row = Math.floor((event.offsetY - (canvas.clientHeight - rows * side) / 2) / side);
    const number = row * across + column;
    if (column >= 0 && column < across && row >= 0 && number < run.images) look(number);
  });
}
$(".whole").addEventListener("click", () => {
  leave();
  player.focus();
});
strip.addEventListener("click", (event) => {
  const chosen = moments(single.sheets.indices.length);
  const index = single.sheets.indices[chosen[Math.floor((event.offsetX / strip.clientWidth) * chosen.length)]];
  go(run.frames.findIndex((frame) => frame.index === index));
});

// ---- transport

function go(to) {
  pause();
  follow = isLive() && to >= run.frames.length - 1;
  seek(Math.max(to, 0));
}

function play() {
  if (playing) return pause();
  if (run.frames.length < 2) return;
  follow = false;
  if (position >= run.frames.length - 1) seek(0);
  player.classList.add("playing");
  $(".play").setAttribute("aria-label", "Pause");
  let [at, before] = [position, null];
  const advance = (now) => {
    at += ((now - (before ?? now)) / 1000) * Math.max(run.frames.length / SECONDS, 5) * Number(speed.value);
    before = now;
    if (Math.floor(at) !== position) seek(Math.floor(at));
    if (at >= run.frames.length - 1) {
      pause();
      follow = isLive();
      seek(run.frames.length - 1);
    } else playing = requestAnimationFrame(advance);
  };
  playing = requestAnimationFrame(advance);
}

function pause() {
  if (playing) cancelAnimationFrame(playing);
  playing = null;
  player.classList.remove("playing");
  $(".play").setAttribute("aria-label", "Play");
}

const keys = {
  ArrowLeft: () => go(position - 1),
  ArrowRight: () => go(position + 1),
  Home: () => go(0),
  End: () => go(run.frames.length - 1),
  " ": play,
  Enter: () => run.images > 1 && look(0),
  ArrowUp: () => single && look(Math.max(single.row - 1, 0)),
  ArrowDown: () => single && look(Math.min(single.row + 1, run.images - 1)),
  Escape: () => (kinds.hidden ? leave() : ((kinds.hidden = true), save.focus())),
};
player.addEventListener("keydown", (event) => {
  const own = event.target.closest("button") && (event.key === " " || event.key === "Enter"); // it answers itself
  const idle = !single && (event.key === "ArrowUp" || event.key === "ArrowDown"); // the page scrolls
  if (!keys[event.key] || own || idle || event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
});
scrub.addEventListener("input", () => go(Number(scrub.value)));
$(".back").addEventListener("click", () => go(position - 1));
$(".forward").addEventListener("click", () => go(position + 1));
$(".play").addEventListener("click", play);
live.addEventListener("click", () => go(run.frames.length - 1));

// ---- files

$(".peer").hidden = !props.has_attention;
save.addEventListener("click", () => {
  kinds.hidden = !kinds.hidden;
  if (!kinds.hidden) kinds.querySelector("button").focus();
});
kinds.addEventListener("click", async (event) => {
  const kind = event.target.dataset.kind;
  if (!kind || saving) return;
  kinds.hidden = true;
  save.focus();
  saving = true;
  say("saving…");
  const file = (await server.save({ run: run.id, kind })) || { problem: "the server did not answer" };
  saving = false;
  if (file.problem) return say(`not saved: ${file.problem}`);
  const link = document.createElement("a");
  [link.href, link.download] = [URL.createObjectURL(await (await fetch(file.content)).blob()), file.name];
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`saved ${file.name}`);
});

function say(words) {
  $(".step").textContent = $(".news").textContent = words;
}

// ---- the server

// It speaks every second. After a silence (a laptop slept, the network went) the page asks for its run again.
setInterval(() => {
  if (heard === null || performance.now() - heard < SILENCE) return;
  heard = performance.now();
  trigger("lost");
}, 1000);

watch("value", () => {
  if (props.value && props.value.state) receive(props.value);
});
