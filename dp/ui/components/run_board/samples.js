// What the run draws from the same seeds at each milestone: a row for each, newest first, and all of them as a film.
let rolls = []; // {step, image, side, columns}, rising
let at = -1; // of the film; -1: the newest
let playing = null;

function clearSamples() {
  stopFilm();
  [rolls, at] = [[], -1];
  delete detail.dataset.samples;
  $(".milestones").replaceChildren();
  $(".film").hidden = $(".rows").hidden = true;
}

async function hang(samples) {
  const about = shown;
  for (const [step, src] of samples) {
    const image = new Image();
    image.src = src;
    const isDecoded = await image.decode().then(() => true, () => false);
    if (about !== shown) return; // another run was chosen meanwhile
    if (!isDecoded) continue; // a damaged file
    rolls.push({ step, image });
    draw(line(step), image);
    detail.dataset.samples = rolls.length;
  }
  if (!rolls.length) return;
  $(".film").hidden = false;
  project();
}

// The row of a step; a new one stands where it belongs, newest first.
function line(step) {
  $(".rows").hidden = false;
  const rows = [...root.querySelectorAll(".milestones li")];
  const found = rows.find((row) => Number(row.dataset.step) <= step);
  if (found && Number(found.dataset.step) === step) return found;
  const [made, into] = [document.createElement("li"), part("into", "")];
  made.dataset.step = step;
  for (const tab of props.tabs) {
    const words = tab[0].toUpperCase() + tab.slice(1);
    const open = Object.assign(document.createElement("button"), { type: "button", textContent: words, ariaLabel: `Open in ${words}` });
    open.addEventListener("click", () => trigger("opened", { run: shown, milestone: step, tab }));
    into.append(open);
  }
  into.hidden = !facts?.checkpoints.includes(step); // a row that was asked for in between has nothing to open
  made.append(part("at", `step ${number(step)}`), document.createElement("canvas"), into);
  made.querySelector("canvas").hidden = true;
  $(".milestones").insertBefore(made, found || null);
  return made;
}

// The server's picture is a square grid of 4 x 4; a row shows its first lines side by side.
const GRID = 4;

function draw(row, image) {
  const canvas = row.querySelector("canvas");
  const side = image.width / GRID;
  const count = element.clientWidth < 600 ? 6 : 10;
  [canvas.width, canvas.height, canvas.hidden] = [side * count, side, false];
  const pen = canvas.getContext("2d");
  for (let i = 0; i < count; i++) pen.drawImage(image, (i % GRID) * side, Math.floor(i / GRID) * side, side, side, i * side, 0, side, side);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Samples at step ${row.dataset.step}`);
}

// Pause and Save now leave checkpoints without samples; they can be opened all the same.
function mark(checkpoints) {
  for (const step of checkpoints) line(step).querySelector(".into").hidden = false;
}

// ---- the film

function project() {
  const index = at < 0 ? rolls.length - 1 : at;
  if (!rolls[index]) return;
  const { step, image } = rolls[index];
  const canvas = $(".screen canvas");
  if (canvas.width !== image.width) [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  [$(".scrub").max, $(".scrub").value] = [rolls.length - 1, index];
  $(".film output").textContent = `step ${number(step)}`;
}

function stopFilm() {
  clearInterval(playing);
  playing = null;
  $(".play").textContent = "▶";
  $(".play").setAttribute("aria-label", "Play");
}

$(".play").addEventListener("click", () => {
  if (playing) return stopFilm();
  at = at < 0 || at >= rolls.length - 1 ? 0 : at;
  project();
  $(".play").textContent = "❚❚";
  $(".play").setAttribute("aria-label", "Pause");
  const pause = Math.max(60, Math.min(400, 6000 / rolls.length));
  playing = setInterval(() => {
    if (++at < rolls.length - 1) return project();
    at = -1; // the newest from here on, as it comes
    project();
    stopFilm();
  }, pause);
});
$(".scrub").addEventListener("input", ({ target }) => {
  stopFilm();
  at = Number(target.value) === rolls.length - 1 ? -1 : Number(target.value);
  project();
});
