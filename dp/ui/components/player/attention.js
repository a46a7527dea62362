// Look inside: the attention of the network's latents to the patches of the selected image, as an overlay that darkens
// what is not attended to.
function createAttention({ root, state, server, panes, isWalking, isAvailable }) {
  const DARKEST = 0.85; // opacity of the overlay where nothing is attended to
  const $ = (selector) => root.querySelector(selector);
  const [block, latent, sheet, summary] = [$(".attention .block"), $(".attention .latent"), $(".attention canvas"), $(".attention-summary")];
  const overlays = [0, 1].map(() => Object.assign(document.createElement("canvas"), { className: "overlay" }));
  let maps = null; // of a step: { index, row, run, image, depth, latents, side, peaks }

  function showMaps(found) {
    maps = found;
    [latent.max, latent.disabled, block.max, block.disabled] = [maps.latents, false, maps.depth, maps.depth < 2];
    showOverlay();
  }

  // Latent 0 is the mean of all.
  function showOverlay() {
    const [b, l] = [Number(block.value) - 1, Number(latent.value)];
    const { side, depth, latents, peaks } = maps;
    const attention = readMap(b, l).data;
    const darkness = new ImageData(side, side);
    for (let i = 3; i < attention.length; i += 4) darkness.data[i] = DARKEST * (255 - attention[i - 1]);
    for (const overlay of overlays) {
      overlay.width = overlay.height = side;
      overlay.getContext("2d").putImageData(darkness, 0, 0);
    }
    panes.canvases.x_t.after(overlays[0]);
    panes.canvases.x0.after(overlays[1]);
    const which = l ? `latent ${l} of ${latents}` : `mean of all ${latents} latents`;
    const percent = ((100 * peaks[b][l]) / side ** 2).toFixed(1);
    const even = (100 / side ** 2).toFixed(1);
    const peak = `${percent}% of ${l ? "its" : "their"} attention is on the brightest patch (an even share: ${even}%)`;
    summary.textContent = `Block ${b + 1} of ${depth}, ${which}: ${peak}`;
    drawThumbnails(b, l);
    root.dataset.attention = `${maps.index}/${b + 1}/${l}`;
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

  // ---- one thumbnail per map, the mean first

  const columns = () => Math.min(maps.latents + 1, sheet.clientWidth < 420 ? 11 : 17);
  const rows = () => Math.ceil((maps.latents + 1) / columns());

  function drawThumbnails(b, selected) {
    const { image, side, latents } = maps;
    const cell = side + 2;
    [sheet.width, sheet.height] = [columns() * cell, rows() * cell];
    const pen = sheet.getContext("2d");
    pen.fillStyle = getComputedStyle(root).getPropertyValue("--color-accent");
    for (let l = 0; l <= latents; l++) {
      const [x, y] = tilePosition(l, columns(), cell);
      if (l === selected) pen.fillRect(x, y, cell, cell);
      pen.drawImage(image, l * side, b * side, side, side, x + 1, y + 1, side, side);
    }
    sheet.classList.remove("stale");
  }

  for (const slider of [latent, block]) slider.addEventListener("input", () => maps && showOverlay());
  sheet.addEventListener("click", (event) => {
    const l = maps ? tileAt(event, sheet, columns(), rows()) : -1;
    if (l < 0 || l > maps.latents) return;
    latent.value = l;
    showOverlay();
  });

  const [name, waiting, ask] = ["attention", "Computing the attention…", server.attention];
  createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show: showMaps, hide: hideOverlay });
}
