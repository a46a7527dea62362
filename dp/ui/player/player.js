// Draws the newest frame. Everything that comes from the server is text or a picture; nothing is ever put into the page as markup.
const SILENCE = 8000; // milliseconds
const player = element.querySelector(".player");
const canvas = element.querySelector("canvas");
const bar = element.querySelector(".bar");
const [stepText, whereText] = [element.querySelector(".step"), element.querySelector(".where")];
const news = element.querySelector(".news"); // read aloud, so only what begins and ends a run

let shown = null; // this run's last frame drawn: its step stays in view when the run ends
let next = null; // the newest value that waits to be drawn; an older one is dropped
let drawing = false;
let stopped = false; // until the next run begins, what was still on its way here comes too late
let first = null; // when the run's first frame came, for its speed
let heard = null; // when the server last spoke of a run that goes on

const picture = async (src) => createImageBitmap(await (await fetch(src)).blob(), { colorSpaceConversion: "none" });

async function pump() {
  if (drawing) return;
  drawing = true;
  while (next) {
    const value = next;
    next = null;
    if (value.src) await draw(value).catch(console.warn); // a frame that cannot be read is one frame less
    caption(value);
    await new Promise(requestAnimationFrame); // let the browser paint before the next one
  }
  drawing = false;
}

async function draw(value) {
  const image = await picture(value.src);
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
  shown = value;
  player.classList.add("drawn");
}

function caption({ state, message }) {
  const at = state === "waiting" ? null : shown; // until a run's first frame the picture of the one before stays, its numbers go
  const { index, timesteps, time, log_snr } = at || { index: 0, timesteps: 1 };
  const position = at ? `step ${index}/${timesteps}` : "starting…";
  const words = {
    waiting: position,
    running: position,
    done: `${position} · done`,
    stopped: at ? `stopped at ${index}/${timesteps}` : "stopped before the first step",
    failed: "the run did not finish",
  };
  stepText.textContent = message || words[state];
  whereText.textContent = at ? `t ${time.toFixed(3)} · log-SNR ${log_snr.toFixed(2)}${speed(index)}` : "";
  if (at) canvas.setAttribute("aria-label", `Predicted images at step ${index} of ${timesteps}`);
  bar.setAttribute("aria-valuenow", (index / timesteps).toFixed(3));
  bar.firstElementChild.style.transform = `scaleX(${index / timesteps})`;
  player.setAttribute("aria-busy", String(state === "waiting" || state === "running"));
  if (state !== "running") news.textContent = stepText.textContent;
  [player.dataset.step, player.dataset.state] = [index, state];
}

function speed(index) {
  first = first || { index, at: performance.now() };
  const seconds = (performance.now() - first.at) / 1000;
  return index > first.index && seconds > 0.2 ? ` · ${((index - first.index) / seconds).toFixed(1)} steps/s` : "";
}

watch("value", () => {
  const value = props.value;
  if (!value || !value.state) return;
  if (value.run) sessionStorage.setItem("dp-run", value.run);
  heard = value.state === "waiting" || value.state === "running" ? performance.now() : null;
  if (value.state === "waiting") shown = first = null;
  else if (stopped) return;
  stopped = value.state === "stopped";
  next = value;
  pump();
});

// The server speaks every second. After a silence (a laptop slept, the network went) the page asks for its run again.
setInterval(() => {
  if (heard === null || performance.now() - heard < SILENCE) return;
  heard = performance.now();
  trigger("lost");
}, 1000);
