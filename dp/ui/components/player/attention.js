// Look inside: the attention of the network's latents to the patches of the selected image. An overlay shows which latent
// reads which patches most, or for one of them darkens what it does not read.
function createAttention({ root, state, server, panes, isWalking, isAvailable }) {
  const DARKEST = 0.85; // opacity of the overlay where nothing is attended to
  const TINT = 0.4; // opacity of the territories
  const PATCH_PX = 16; // of the overlay with territories
  const LEAST_VARIATION = 0.1; // between the latents' maps: with less, they read the same patches
  const $ = (selector) => root.querySelector(selector);
  const [block, latent, sheet, summary] = [$(".attention .block"), $(".attention .latent"), $(".attention canvas"), $(".attention-summary")];
  const overlays = [0, 1].map(() => Object.assign(document.createElement("canvas"), { className: "overlay" }));
  let maps = null; // of a step: { index, row, run, image, depth, latents, side, peaks, variation }
  let territories = null; // of the block that is shown

  function showMaps(found) {
    maps = found;
    [latent.max, latent.disabled, block.max, block.disabled] = [maps.latents, false, maps.depth, maps.depth < 2];
    showOverlay();
  }

  // Latent 0 stands for all.
  function showOverlay() {
    const [b, l] = [Number(block.value) - 1, Number(latent.value)];
    const isAlike = maps.variation[b] < LEAST_VARIATION;
    territories = isAlike ? null : createTerritories(readMaps(b), maps.side);
    if (l) for (const overlay of overlays) darken(overlay, b, l);
    else if (territories) paintTerritories(overlays[1], territories, maps.side, PATCH_PX, TINT);
    for (const [i, canvas] of [panes.canvases.x_t, panes.canvases.x0].entries()) {
      if (l || (territories && i)) canvas.after(overlays[i]); // beside the territories, the noisy image stays as it is
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
    if (!territories) return `${where}: all ${maps.latents} latents read the same patches, so there are no territories to show.`;
    const owners = territories.color.filter(Boolean).length;
    return `${where}: ${owners} of ${maps.latents} latents read some patches more than any other does. Those that read about the same have one color, ${territories.groups} in all.`;
  }

  function describeLatent(b, l) {
    const { side, depth, latents, peaks } = maps;
    const percent = ((100 * peaks[b][l]) / side ** 2).toFixed(1);
    const even = (100 / side ** 2).toFixed(1);
    return `Block ${b + 1} of ${depth}, latent ${l} of ${latents}: ${percent}% of its attention is on the brightest patch (an even share: ${even}%)`;
  }

  function hideOverlay() {
    sheet.classList.add("stale");
    latent.disabled = block.disabled = true;
    for (const overlay of overlays) overlay.remove();
    delete root.dataset.attention;
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
  const order = () => [0, ...(territories ? territories.order.map((l) => l + 1) : Array.from({ length: maps.latents }, (_, l) => l + 1))];

  function drawThumbnails(b, selected) {
    const { image, side } = maps;
    const [frame, cell] = [2, side + 4];
    [sheet.width, sheet.height] = [columns() * cell, rows() * cell];
    const pen = sheet.getContext("2d");
    const accent = getComputedStyle(root).getPropertyValue("--color-accent");
    order().forEach((l, place) => {
      const [x, y] = tilePosition(place, columns(), cell);
      const color = l && territories?.color[l - 1];
      pen.fillStyle = l === selected ? accent : color ? `rgb(${color.join(" ")})` : "transparent";
      pen.fillRect(x, y, cell, cell);
      if (l || !territories) return pen.drawImage(image, l * side, b * side, side, side, x + frame, y + frame, side, side);
      const whole = document.createElement("canvas");
      paintTerritories(whole, territories, side, 1, 1);
      pen.drawImage(whole, x + frame, y + frame);
    });
    sheet.classList.remove("stale");
  }

  for (const slider of [latent, block]) slider.addEventListener("input", () => maps && showOverlay());
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
