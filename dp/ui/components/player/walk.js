// ---- a walk between two seeds: its images in a line, played to and fro

const line_up = $(".path canvas");
let walking = null;
let lined = null; // the frame whose images stand in the line

async function path() {
  const shown = run.frames[position];
  $(".path").hidden = !run.walk || !shown;
  if (!run.walk || !shown) return;
  const image = lined?.frame === shown ? lined.image : await picture(shown.x0);
  lined = { frame: shown, image };
  const side = image.width / columns();
  const many = Math.min(run.images, 16);
  [line_up.width, line_up.height] = [many * side, Math.ceil(run.images / many) * side];
  const pen = line_up.getContext("2d");
  for (let i = 0; i < run.images; i++) {
    const [x, y] = [(i % columns()) * side, Math.floor(i / columns()) * side];
    pen.drawImage(image, x, y, side, side, (i % many) * side, Math.floor(i / many) * side, side, side);
  }
  if (!single) return;
  [pen.strokeStyle, pen.lineWidth] = [getComputedStyle(player).getPropertyValue("--color-accent"), side / 20];
  const edge = pen.lineWidth / 2;
  pen.strokeRect((single.row % many) * side + edge, Math.floor(single.row / many) * side + edge, side - 2 * edge, side - 2 * edge);
}

function stride() {
  if (walking) return halt();
  pause();
  player.classList.add("walking");
  $(".walk").setAttribute("aria-pressed", "true");
  let [row, by] = [single ? single.row : 0, 1];
  stand(row);
  walking = setInterval(() => {
    if (!single || run.images < 2) return halt(); // left, or another run has begun
    if (row + by < 0 || row + by >= run.images) by = -by;
    stand((row += by));
  }, 1000 / 6);
}

// As `look`, but without asking for the image's whole course: it is gone again in a moment.
function stand(row) {
  single = { row, sheets: null };
  player.classList.add("single");
  [player.dataset.image, drawn] = [row, null];
  seek(position);
}

function halt() {
  clearInterval(walking);
  walking = null;
  player.classList.remove("walking");
  $(".walk").setAttribute("aria-pressed", "false");
  if (single) look(single.row);
}

$(".walk").addEventListener("click", stride);
line_up.addEventListener("click", (event) => {
  const many = Math.min(run.images, 16);
  const rows = Math.ceil(run.images / many);
  const row = Math.floor((event.offsetY / line_up.clientHeight) * rows) * many + Math.floor((event.offsetX / line_up.clientWidth) * many);
  if (walking) halt();
  if (row < run.images) look(row);
});
new MutationObserver(path).observe(player, { attributeFilter: ["data-step", "data-image", "data-state"] });
