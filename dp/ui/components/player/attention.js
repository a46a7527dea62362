// ---- look inside: what the latents of the network read of the image that is looked at alone, lit up on it

const inner = $(".inside");
const [latent, block, sheet] = [$(".inside .latent"), $(".inside .block"), $(".inside canvas")];
const covers = [0, 1].map(() => Object.assign(document.createElement("canvas"), { className: "light" }));
let reads = null; // of the shown step: { index, row, picture, depth, latents, side, peaks }
let looking = null; // the step that has been asked for
let opened = false;

function peer() {
  const shown = run.frames[position];
  if (!opened || !single || walking || !run.whole || !run.id || !shown) return dim();
  if (reads && reads.index === shown.index && reads.row === single.row && reads.run === run) return light();
  dim();
  const asked = (looking = { index: shown.index, row: single.row, run });
  // The last of a quick succession of steps is enough.
  setTimeout(async () => {
    if (asked !== looking) return;
    $(".reads").textContent = "Computing the attention…";
    const found = (await server.inside({ run: run.id, row: asked.row, index: asked.index })) || { problem: "The server no longer has this run." };
    if (asked !== looking) return;
    if (found.problem) return void ($(".reads").textContent = found.problem);
    reads = { ...found, ...asked, picture: await picture(found.sheet) };
    [latent.max, latent.disabled, block.max, block.disabled] = [reads.latents, false, reads.depth, reads.depth < 2];
    if (asked === looking) light();
  }, 150);
}

// Everything but what is read grows dark.
function light() {
  const [b, l] = [Number(block.value) - 1, Number(latent.value)];
  const side = reads.side;
  const pixels = tileOf(l, b).data;
  const cover = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) cover.data[4 * i + 3] = 0.85 * (255 - pixels[4 * i]);
  for (const canvas of covers) {
    canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(cover, 0, 0);
  }
  panes.x_t.after(covers[0]);
  panes.x0.after(covers[1]);
  sheet.classList.remove("stale");
  const who = l ? `latent ${l} of ${reads.latents}` : `mean of all ${reads.latents} latents`;
  const peak = reads.peaks[b][l]; // in uniform shares
  const percent = ((100 * peak) / side ** 2).toFixed(1);
  const words = `${percent} % of the attention is on the brightest patch (${peak.toFixed(1)}× a uniform share)`;
  $(".reads").textContent = `Block ${b + 1} of ${reads.depth}, ${who}: ${words}`;
  thumbnails(b, l);
  player.dataset.inside = `${reads.index}/${b + 1}/${l}`;
}

function tileOf(l, b) {
  const { side } = reads;
  const page = new OffscreenCanvas(side, side).getContext("2d");
  page.drawImage(reads.picture, l * side, b * side, side, side, 0, 0, side, side);
  return page.getImageData(0, 0, side, side);
}

function across() {
  return Math.min(reads.latents + 1, sheet.clientWidth < 420 ? 11 : 17);
}

// Each map once, small; the first is all latents together.
function thumbnails(b, l) {
  const { side, latents } = reads;
  const [columns, cell] = [across(), side + 2];
  [sheet.width, sheet.height] = [columns * cell, Math.ceil((latents + 1) / columns) * cell];
  const pen = sheet.getContext("2d");
  for (let i = 0; i <= latents; i++) {
    const [x, y] = [(i % columns) * cell, Math.floor(i / columns) * cell];
    if (i === l) {
      pen.fillStyle = getComputedStyle(player).getPropertyValue("--color-accent");
      pen.fillRect(x, y, cell, cell);
    }
    pen.drawImage(reads.picture, i * side, b * side, side, side, x + 1, y + 1, side, side);
  }
}

function dim() {
  looking = null;
  sheet.classList.add("stale");
  for (const canvas of covers) canvas.remove();
  if (opened && single) $(".reads").textContent = run.whole ? "" : "Available when the run has finished.";
  delete player.dataset.inside;
}

$(".peer").addEventListener("click", () => {
  opened = !opened;
  $(".peer").setAttribute("aria-pressed", String(opened));
  inner.hidden = !opened;
  peer();
});
for (const slider of [latent, block]) slider.addEventListener("input", () => reads && light());
sheet.addEventListener("click", (event) => {
  if (!reads) return;
  const columns = across();
  const rows = Math.ceil((reads.latents + 1) / columns);
  const at = Math.floor((event.offsetY / sheet.clientHeight) * rows) * columns + Math.floor((event.offsetX / sheet.clientWidth) * columns);
  if (at > reads.latents) return;
  latent.value = at;
  light();
});
// The frame, or the image, that is shown has changed.
new MutationObserver(peer).observe(player, { attributeFilter: ["data-step", "data-image", "data-kept"] });
