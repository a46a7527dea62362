// Look inside: the attention of the network's latents to the patches of the selected image, in groups of latents whose
// maps differ least, and one by one: an overlay then darkens what the latent does not read.
function createAttention({ root, state, server, panes, isWalking, isAvailable }) {
  const DARKEST = 0.85; // opacity where nothing is attended to
  const LEAST_VARIATION = 0.1; // between the latents' maps: with less, they read the same patches
  const $ = (selector) => root.querySelector(selector);
  const [block, latent, sheet, summary] = [$(".attention .block"), $(".attention .latent"), $(".attention .maps"), $(".attention-summary")];
  const list = $(".attention .groups");
  list.append(...Array.from({ length: MOST_GROUPS }, () => createPicture())); // they keep their places
  const overlays = [0, 1].map(() => Object.assign(document.createElement("canvas"), { className: "overlay" }));
  let maps = null; // of a step: { index, row, run, image, depth, latents, side, peaks, variation }
  let groups = null; // of the latents in the block that is shown, none if they all read the same

  function showMaps(found) {
    maps = found;
    [latent.max, latent.disabled, block.max, block.disabled] = [maps.latents, false, maps.depth, maps.depth < 2];
    showBlock();
  }

  function showBlock() {
    const b = Number(block.value) - 1;
    groups = maps.variation[b] < LEAST_VARIATION ? [] : groupLatents(readMaps(b));
    [...list.children].forEach((picture, i) => drawPicture(picture, groups[i]));
    showOverlay();
  }

  function createPicture() {
    const [item, canvas, caption] = ["li", "canvas", "span"].map((tag) => document.createElement(tag));
    [canvas.width, canvas.height] = [1, 1];
    canvas.setAttribute("aria-hidden", "true");
    item.append(canvas, caption);
    return item;
  }

  // What the latents of a group read of the prediction.
  function drawPicture(item, group) {
    item.classList.toggle("stale", !group);
    if (!group) return;
    const [canvas, caption] = item.children;
    paintLit(canvas, panes.canvases.x0, group.map, DARKEST);
    canvas.style.borderColor = group.color;
    caption.textContent = `${group.latents.length} latents`;
  }

  // Latent 0 stands for all.
  function showOverlay() {
    const [b, l] = [Number(block.value) - 1, Number(latent.value)];
    for (const [i, canvas] of [panes.canvases.x_t, panes.canvases.x0].entries()) {
      if (l) [darken(overlays[i], b, l), canvas.after(overlays[i])];
      else overlays[i].remove();
    }
    summary.textContent = l ? describeLatent(b, l) : describeAll(b);
    drawThumbnails(b, l);
    root.dataset.attention = `${maps.index}/${b + 1}/${l}`;
  }

  function darken(overlay, b, l) {
    const { side } = maps;
    const attention = readMap(b, l).data;
    const darkness = new ImageData(side, side);
    for (let i = 3; i < attention.length; i += 4) darkness.data[i] = DARKEST * (255 - attention[i - 1]);
    overlay.width = overlay.height = side;
    overlay.getContext("2d").putImageData(darkness, 0, 0);
  }

  function describeAll(b) {
    const where = `Block ${b + 1} of ${maps.depth}, step ${maps.index}`;
    if (!groups.length) return `${where}: all ${maps.latents} latents read the same patches, so there are no groups to show.`;
    return `${where}: the ${maps.latents} latents in ${groups.length} groups of similar maps. Other steps and images have other groups.`;
  }

  function describeLatent(b, l) {
    const { side, depth, latents, peaks } = maps;
    const percent = ((100 * peaks[b][l]) / side ** 2).toFixed(1);
    const even = (100 / side ** 2).toFixed(1);
    return `Block ${b + 1} of ${depth}, latent ${l} of ${latents}: ${percent}% of its attention is on the brightest patch (an even share: ${even}%)`;
  }

  function hideOverlay() {
    for (const part of [sheet, list]) part.classList.add("stale");
    latent.disabled = block.disabled = true;
    for (const overlay of overlays) overlay.remove();
    forgetNames();
    delete root.dataset.attention;
  }

  // A guided question names the groups of the step and the block that it shows.
  function forgetNames() {
    for (const picture of list.children) delete picture.lastElementChild.dataset.name;
  }

  function readMap(b, l) {
    const { image, side } = maps;
    const pen = new OffscreenCanvas(side, side).getContext("2d");
    pen.drawImage(image, l * side, b * side, side, side, 0, 0, side, side);
    return pen.getImageData(0, 0, side, side);
  }

  // The attention of each latent in a block: gray levels, scaled to the peak of each.
  function readMaps(b) {
    return Array.from({ length: maps.latents }, (_, i) => {
      const { data } = readMap(b, i + 1);
      const peak = maps.peaks[b][i + 1] / maps.side ** 2;
      return Array.from({ length: maps.side ** 2 }, (_, p) => (peak * data[4 * p]) / 255);
    });
  }

  // ---- one thumbnail per map: all first, then the latents by their groups

  const columns = () => Math.min(maps.latents + 1, sheet.clientWidth < 420 ? 11 : 17);
  const rows = () => Math.ceil((maps.latents + 1) / columns());
  const order = () => [0, ...(groups.length ? groups.flatMap(({ latents }) => latents.map((l) => l + 1)) : Array.from({ length: maps.latents }, (_, l) => l + 1))];

  function drawThumbnails(b, selected) {
    const { image, side } = maps;
    const [frame, cell] = [2, side + 4];
    [sheet.width, sheet.height] = [columns() * cell, rows() * cell];
    const pen = sheet.getContext("2d");
    const accent = getComputedStyle(root).getPropertyValue("--color-accent");
    order().forEach((l, place) => {
      const [x, y] = tilePosition(place, columns(), cell);
      pen.fillStyle = l === selected ? accent : groups.find(({ latents }) => latents.includes(l - 1))?.color ?? "transparent";
      pen.fillRect(x, y, cell, cell);
      pen.drawImage(image, l * side, b * side, side, side, x + frame, y + frame, side, side);
    });
    for (const part of [sheet, list]) part.classList.remove("stale");
  }

  latent.addEventListener("input", () => maps && showOverlay());
  block.addEventListener("input", () => maps && [forgetNames(), showBlock()]);
  sheet.addEventListener("click", (event) => {
    const place = maps ? tileAt(event, sheet, columns(), rows()) : -1;
    if (place < 0 || place > maps.latents) return;
    const l = order()[place];
    latent.value = l === Number(latent.value) ? 0 : l; // a second click shows all again
    showOverlay();
  });

  const [name, waiting, ask] = ["attention", "Computing the attention…", server.attention];
  createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show: showMaps, hide: hideOverlay });
}
