// Draws the newest frame. Everything that comes from the server is text or a picture; nothing is ever put into the page as markup.
const player = element.querySelector(".player");
const canvas = element.querySelector("canvas");
const hint = element.querySelector(".hint");
const bar = element.querySelector(".bar");
const [stepText, whereText] = [element.querySelector(".step"), element.querySelector(".where")];

let shown = null; // the last frame drawn: its step stays in view after the run
let next = null; // the newest value that waits to be drawn; an older one is dropped
let drawing = false;
let first = null; // when the run's first frame came, for its speed

const picture = async (src) => createImageBitmap(await (await fetch(src)).blob(), { colorSpaceConversion: "none" });

async function pump() {
  if (drawing) return;
  drawing = true;
  while (next) {
    const value = next;
    next = null;
    if (value.src) {
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
    caption(value);
    await new Promise(requestAnimationFrame); // let the browser paint before the next one
  }
  drawing = false;
}

function caption(value) {
  const { state, message } = value;
  player.dataset.state = state;
  player.setAttribute("aria-busy", String(state === "waiting" || state === "running"));
  if (state === "waiting") {
    first = null;
    stepText.textContent = message || "starting…";
    whereText.textContent = "";
    progress(0, 1);
    return;
  }
  const at = value.src ? value : shown;
  if (at) {
    const { index, timesteps, time, log_snr } = at;
    const position = `step ${index}/${timesteps}`;
    stepText.textContent = { running: position, done: `${position} · done`, stopped: `stopped at ${index}/${timesteps}` }[state] || position;
    whereText.textContent = `t ${time.toFixed(3)} · log-SNR ${log_snr.toFixed(2)}${speed(index)}`;
    canvas.setAttribute("aria-label", `Predicted images at step ${index} of ${timesteps}`);
    player.dataset.step = index;
    progress(index, timesteps);
  }
  if (message) stepText.textContent = message;
}

function speed(index) {
  first = first || { index, at: performance.now() };
  const seconds = (performance.now() - first.at) / 1000;
  return index > first.index && seconds > 0.2 ? ` · ${((index - first.index) / seconds).toFixed(1)} steps/s` : "";
}

function progress(value, total) {
  bar.setAttribute("aria-valuenow", (value / total).toFixed(3));
  bar.firstElementChild.style.transform = `scaleX(${value / total})`;
}

watch("value", () => {
  const value = props.value;
  if (!value || !value.state) return;
  next = value;
  pump();
});
