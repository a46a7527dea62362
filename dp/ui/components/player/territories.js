// The image divided among the latents: each patch belongs to the one that reads it most.

// maps: the attention of each latent [M][N] to the patches of a square image, each summing to 1. Return the `owner` of
// each patch, the `color` of each latent as [r, g, b], null for one without a territory, and the latents in `order`:
// around the image, as the centers of their territories lie.
function createTerritories(maps, side) {
  const patches = side * side;
  const owner = Array.from({ length: patches }, (_, p) => maps.reduce((best, map, l) => (map[p] > maps[best][p] ? l : best), 0));
  const centers = maps.map((map) => {
    const sum = (of) => map.reduce((total, weight, p) => total + weight * of(p), 0) - (side - 1) / 2;
    return { x: sum((p) => p % side), y: sum((p) => Math.floor(p / side)) };
  });
  const angle = (l) => Math.atan2(centers[l].y, centers[l].x);
  const order = maps.map((_, l) => l).sort((a, b) => angle(a) - angle(b));
  const owners = order.filter((l) => owner.includes(l));
  const color = maps.map((_, l) => {
    const place = owners.indexOf(l);
    return place < 0 ? null : hueToRgb((360 * place) / owners.length, place % 2 ? 0.42 : 0.6);
  });
  return { owner, color, order };
}

// HSL with full saturation: hue in degrees, lightness from 0 to 1. Return [r, g, b], 0 to 255.
function hueToRgb(hue, lightness) {
  const amount = 0.85 * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - amount * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

// Paint the territories, with a line between neighbors: `scale` pixels per patch.
function paintTerritories(canvas, { owner, color }, side, scale, opacity) {
  canvas.width = canvas.height = side * scale;
  const pen = canvas.getContext("2d");
  for (let p = 0; p < owner.length; p++) {
    const [x, y] = [(p % side) * scale, Math.floor(p / side) * scale];
    pen.fillStyle = `rgb(${color[owner[p]].join(" ")} / ${opacity})`;
    pen.fillRect(x, y, scale, scale);
    pen.fillStyle = "rgb(0 0 0 / 0.7)";
    if (p % side && owner[p] !== owner[p - 1]) pen.fillRect(x - 0.5, y, 1, scale);
    if (p >= side && owner[p] !== owner[p - side]) pen.fillRect(x, y - 0.5, scale, 1);
  }
}
