// The files of a run that the page saves: as those of the app (dp/serving/files.py), with the same names and settings.
const MAX_PNG_SIDE = 4096; // pixels
const ENLARGED = { png: 1, png4: 4, png8: 8 };
const [STRIP_STEPS, STRIP_SIDE] = [10, 128];

// run: { frames, provenance, size: { side, channels } }; frames have the bytes of their images. Return { name, bytes }.
async function makeFile({ frames, provenance, size }, kind, row) {
  const own = { app: "dp 0.1", ...provenance, steps_taken: frames.at(-1).index };
  const [model, { x0: result }] = [own.checkpoint.replaceAll("/", "-"), frames.at(-1)];
  const columns = Math.ceil(Math.sqrt(own.batch_size));
  const tile = (bytes, i) => bytes.subarray(i * size.side ** 2 * size.channels, (i + 1) * size.side ** 2 * size.channels);
  const single = (bytes, i) => makeGrid(tile(bytes, i), size, 1);
  const texts = (record) => ({ parameters: toLine(own), dp: toAscii(JSON.stringify(record)) });
  const name = `${model}-${own.seed}`;
  if (kind in ENLARGED) {
    const grid = makeGrid(result, size, columns);
    const side = Math.max(grid.width, grid.height) * ENLARGED[kind];
    if (side > MAX_PNG_SIDE) throw new Error(`${grid.width}×${grid.height} pixels ${ENLARGED[kind]} times as large are more than ${MAX_PNG_SIDE} on a side`);
    return { name: `${name}.png`, bytes: await encodePng(enlarge(grid, ENLARGED[kind]), texts(own)) };
  }
  if (kind === "strip") {
    const times = Math.max(1, Math.round(STRIP_SIDE / size.side));
    const chosen = spread(frames.length, STRIP_STEPS).map((at) => enlarge(single(frames[at].x0, row), times));
    const record = { ...own, ...settingsOfImage(own, row) };
    return { name: `${model}-${record.seed}-strip.png`, bytes: await encodePng(makeStrip(chosen, 2), texts(record)) };
  }
  const files = {};
  if (kind === "images") {
    for (let i = 0; i < own.batch_size; i++) {
      const record = { ...own, ...settingsOfImage(own, i) };
      files[`${model}-${record.seed}.png`] = await encodePng(single(result, i), texts(record));
    }
    return { name: `${name}-images.zip`, bytes: await makeZip(files) };
  }
  for (const frame of frames)
    for (const key of ["x_t", "x0"])
      files[`${key}/${String(frame.index).padStart(6, "0")}.png`] = await encodePng(makeGrid(frame[key], size, columns));
  files["settings.json"] = new TextEncoder().encode(JSON.stringify(own, null, 2));
  return { name: `${name}-steps.zip`, bytes: await makeZip(files) };
}

// Evenly spaced positions in `count`, with both ends; at most `most`.
function spread(count, most) {
  const many = Math.min(count, most);
  return Array.from({ length: many }, (_, i) => Math.round((i * (count - 1)) / Math.max(many - 1, 1)));
}

// The settings in which one image differs from the whole run.
function settingsOfImage({ seed, label }, row) {
  const own = { seed: seed + row, batch_size: 1 };
  if (!Array.isArray(label)) return own;
  return { ...own, label: label[row], ...(label[row] ? {} : { guidance: 1 }) };
}

const toAscii = (text) => text.replace(/[\u0080-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function toLine(made) {
  const keywords = Object.entries(made.schedule_kwargs).map(([key, value]) => `${key} ${value}`).join(", ");
  const [low, high] = made.guidance_interval;
  const span = low === 0 && high === 1 ? "" : ` from ${low} to ${high}`;
  return [
    `${made.checkpoint} (${made.sha256.slice(0, 12)})`,
    `${made.batch_size} images from seed ${made.seed}`,
    made.sampler,
    `${made.timesteps} steps`,
    ...(made.label ? [`class ${made.label}`, `guidance ${made.guidance}${span}`] : []),
    `${made.noise_schedule} schedule${keywords && ` (${keywords})`}`,
    `time difference ${made.time_difference}`,
    `eta ${made.eta}`,
    made.device,
    made.app,
  ].join(", ");
}
