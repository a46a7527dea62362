// The image divided among the latents: each patch belongs to the one that reads it most. Latents that read about the same
// share a hue, and differ in lightness.
const MOST_GROUPS = 6; // hues that are easily told apart

// maps: the attention of each latent [M][N] to the patches of a square image, each summing to 1. Return the `owner` of
// each patch; the `group` of each latent; the `color` of each as [r, g, b], null for one without a territory; how many
// `groups` have one; and the latents in `order` of their groups.
function createTerritories(maps, side) {
  const patches = side * side;
  const owner = Array.from({ length: patches }, (_, p) => maps.reduce((best, map, l) => (map[p] > maps[best][p] ? l : best), 0));
  const owners = maps.map((_, l) => l).filter((l) => owner.includes(l));
  const clusters = clusterMaps(owners.map((l) => ({ latents: [l], map: maps[l] })), MOST_GROUPS);
  const group = maps.map((_, l) => clusters.findIndex(({ latents }) => latents.includes(l)));
  const color = maps.map((_, l) => {
    if (group[l] < 0) return null;
    const { latents } = clusters[group[l]];
    const shade = latents.length > 1 ? latents.indexOf(l) / (latents.length - 1) : 0.5;
    return hslToRgb((360 * group[l]) / clusters.length, 0.4 + 0.22 * shade);
  });
  const rank = (l) => (group[l] < 0 ? clusters.length : group[l]);
  const order = maps.map((_, l) => l).sort((a, b) => rank(a) - rank(b) || a - b);
  return { owner, group, color, groups: clusters.length, order };
}

// Join the two clusters whose mean maps differ least, until there are only `most`.
function clusterMaps(clusters, most) {
  const differ = (a, b) => a.map.reduce((sum, weight, p) => sum + Math.abs(weight - b.map[p]), 0);
  while (clusters.length > most) {
    let [first, second, least] = [0, 1, Infinity];
    clusters.forEach((a, i) => clusters.slice(i + 1).forEach((b, j) => differ(a, b) < least && ([first, second, least] = [i, i + 1 + j, differ(a, b)])));
    const [a, b] = [clusters[first], clusters[second]];
    const [m, n] = [a.latents.length, b.latents.length];
    const joined = { latents: [...a.latents, ...b.latents], map: a.map.map((weight, p) => (m * weight + n * b.map[p]) / (m + n)) };
    clusters = [...clusters.filter((cluster) => cluster !== a && cluster !== b), joined];
  }
  return clusters.sort((a, b) => a.latents[0] - b.latents[0]);
}

// hue in degrees, lightness from 0 to 1, of a strong color. Return [r, g, b], 0 to 255.
function hslToRgb(hue, lightness) {
  const amount = 0.85 * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - amount * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

// Paint the territories, with a line between groups: `scale` pixels per patch.
function paintTerritories(canvas, { owner, group, color }, side, scale, opacity) {
  canvas.width = canvas.height = side * scale;
  const pen = canvas.getContext("2d");
  const isOther = (p, q) => group[owner[p]] !== group[owner[q]];
  for (let p = 0; p < owner.length; p++) {
    const [x, y] = [(p % side) * scale, Math.floor(p / side) * scale];
    pen.fillStyle = `rgb(${color[owner[p]].join(" ")} / ${opacity})`;
    pen.fillRect(x, y, scale, scale);
    pen.fillStyle = "rgb(0 0 0 / 0.8)";
    if (p % side && isOther(p, p - 1)) pen.fillRect(x - 0.5, y, 1, scale);
    if (p >= side && isOther(p, p - side)) pen.fillRect(x, y - 0.5, scale, 1);
  }
}
