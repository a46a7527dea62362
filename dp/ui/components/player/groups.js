// The latents in groups, those together whose maps differ least.
const MOST_GROUPS = 4; // pictures in one row, and colors that are easily told apart
const GROUP_COLORS = ["#3b82f6", "#e11d48", "#eab308", "#10b981"];

// maps: the attention of each latent [M][N] to the patches, each summing to 1. Return the groups, the largest first: their
// `latents`, the mean `map` of these [N], and a `color`.
function groupLatents(maps) {
  const differ = (a, b) => a.map.reduce((sum, weight, p) => sum + Math.abs(weight - b.map[p]), 0);
  let groups = maps.map((map, l) => ({ latents: [l], map }));
  const distances = groups.map((a, i) => groups.map((b, j) => (j > i ? differ(a, b) : Infinity)));
  while (groups.length > MOST_GROUPS) {
    let [first, second, least] = [0, 1, Infinity];
    distances.forEach((row, i) => row.forEach((distance, j) => distance < least && ([first, second, least] = [i, j, distance])));
    const [a, b] = [groups[first], groups[second]];
    const [m, n] = [a.latents.length, b.latents.length];
    const joined = { latents: [...a.latents, ...b.latents].sort((x, y) => x - y), map: a.map.map((weight, p) => (m * weight + n * b.map[p]) / (m + n)) };
    const isKept = (_, i) => i !== first && i !== second;
    groups = [...groups.filter(isKept), joined];
    distances.splice(0, distances.length, ...distances.filter(isKept).map((row, i) => [...row.filter(isKept), differ(groups[i], joined)]), groups.map(() => Infinity));
  }
  groups.sort((a, b) => b.latents.length - a.latents.length || a.latents[0] - b.latents[0]);
  return groups.map((group, i) => ({ ...group, color: GROUP_COLORS[i] }));
}

// Paint a picture [side of any size] that is dark where a map [N] of square patches is low.
function paintLit(canvas, picture, map, darkest) {
  const [side, peak] = [Math.sqrt(map.length), Math.max(...map)];
  const darkness = new OffscreenCanvas(side, side);
  const alphas = new ImageData(side, side);
  map.forEach((weight, p) => (alphas.data[4 * p + 3] = 255 * darkest * (1 - weight / peak)));
  darkness.getContext("2d").putImageData(alphas, 0, 0);
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(darkness, 0, 0, canvas.width, canvas.height);
}
