// A source of the player: runs that a worker of this page computes. Another source is the app's server, with the same
// values (dp/ui/components/player/player.py) and the same functions: `frames`, `closeup`, `save` and `recording`.
//
// base: the address of the files. emit: called with each value for the player. onChange: called with { isBusy, progress,
// problem, build } when one of them changes; progress is [received, total] in bytes while the model is fetched, and build
// is what computes: "wasm" or "webgpu". The player's run begins with its first frame, so until then, and if nothing can be
// computed, the player keeps what it shows.
function createSource({ about, base = "", emit, onChange }) {
  const FRAMES_PER_S = 15; // to the player; all of them are kept
  const [MOST_FRAMES, MOST_BYTES] = [256, 128 << 20]; // kept of a run
  const [SHEET_COLUMNS, CHUNK_FRAMES, HEARTBEAT_MS] = [16, 16, 1000];
  const size = { side: about.network.image_size, channels: about.network.channels };
  let wasLost = false; // the graphics processor
  let worker = null;
  let run = null; // { id, settings, provenance, plan, curves, frames, kept, hasBegun, isLive }
  let count = 0; // of runs

  // builds: those that may compute it, in order.
  function start(settings, builds, id = `run-${(count += 1)}`) {
    if (run?.isLive) stop();
    const frameBytes = 2 * settings.images * size.side ** 2 * size.channels;
    const most = Math.max(8, Math.min(MOST_FRAMES, Math.floor(MOST_BYTES / frameBytes)));
    const kept = new Set(spread(settings.timesteps, most).map((i) => i + 1));
    run = { id, settings, kept, frames: [], plan: planRun(about, settings), hasBegun: false, isLive: true, shownAt: 0 };
    onChange({ isBusy: true, progress: null, problem: "" });
    try {
      worker ||= createWorker();
    } catch (error) {
      return end(run, "failed", `this browser cannot start a worker for the model: ${error.message}`);
    }
    const { network, policy, files } = about;
    worker.postMessage({ type: "run", id, model: { network, policy }, files, settings, builds: wasLost ? ["wasm"] : builds });
  }

  function createWorker() {
    const created = new Worker(`${base}runner.js?${about.version}`);
    created.onmessage = ({ data }) => data.id === run?.id && receive(run, data);
    created.onerror = (event) => {
      event.preventDefault();
      worker = null; // the next run starts another one
      created.terminate();
      if (run?.isLive) end(run, "failed", event.message ? `the worker has failed: ${event.message}` : "the page's file runner.js is missing or damaged: its owner has to upload it again");
    };
    return created;
  }

  function stop() {
    if (!run?.isLive) return;
    worker?.postMessage({ type: "stop" });
    end(run, "stopped"); // what still arrives is ignored
  }

  function receive(of, { type, ...data }) {
    if (!of.isLive) return;
    if (type === "progress") return onChange({ isBusy: true, progress: [data.received, data.total], problem: "" });
    if (type === "frame") return take(of, data);
    wasLost ||= Boolean(data.wasLost);
    end(of, type, data.problem);
  }

  // Keep a frame, and show it if the last one was shown some time ago.
  async function take(of, { index, x_t, x0, moved, build }) {
    const { timesteps } = of.settings;
    const { t: time, log_snr } = of.plan.t[index - 1];
    const frame = { index, time, log_snr, moved, x_t, x0 };
    of.newest = frame;
    if (of.kept.has(index)) of.frames.push(frame);
    if (!of.hasBegun) begin(of, build);
    const now = performance.now();
    if (index === timesteps || now - of.shownAt < 1000 / FRAMES_PER_S) return; // the last one is shown when the run ends
    of.shownAt = now;
    const value = await toValue(of, frame);
    if (of.isLive && of === run) emit({ state: "running", ...value });
  }

  function begin(of, build) {
    of.hasBegun = true;
    of.provenance = toProvenance(of.settings, about, build === "webgpu" ? "webgpu" : "cpu");
    of.build = build;
    onChange({ isBusy: true, progress: null, problem: "", build });
    emit({ state: "waiting", ...describe(of) });
  }

  const describe = (of) => ({
    run: of.id,
    walk: of.settings.walkTo !== null,
    seed: of.settings.seed,
    settings: describeRun(of.provenance),
  });

  async function toValue(of, frame) {
    const { timesteps, images } = of.settings;
    const { x_t, x0, ...rest } = await encode(of, frame);
    of.curves ||= toCurves(of.settings, about);
    return { ...describe(of), ...rest, ...of.curves, timesteps, count: images, src: x0, noisy: x_t };
  }

  // The frame with its images as the player takes them.
  async function encode({ settings }, frame) {
    const columns = Math.ceil(Math.sqrt(settings.images));
    const [x_t, x0] = await Promise.all([frame.x_t, frame.x0].map((bytes) => toPngUri(makeGrid(bytes, size, columns))));
    return { ...frame, x_t, x0 };
  }

  async function end(of, state, problem) {
    of.isLive = false;
    if (of.newest && of.frames.at(-1) !== of.newest) of.frames.push(of.newest);
    onChange({ isBusy: false, progress: null, problem: problem ? toSentence(problem) : "", build: of.build });
    if (!of.hasBegun) return;
    const value = await toValue(of, of.newest);
    const names = of.settings.labels.map((label) => about.classes[label - 1] ?? null);
    const message = problem ? { message: toSentence(problem) } : {};
    if (of === run) emit({ state, ...value, ...message, ...(names.some(Boolean) ? { classes: names } : {}) });
  }

  const timer = setInterval(() => {
    if (run?.isLive && run.hasBegun) emit({ state: "running", run: run.id, heartbeat: performance.now() });
  }, HEARTBEAT_MS);

  function close() {
    clearInterval(timer);
    stop();
    worker?.terminate();
  }

  // ---- what the player asks

  const find = (id) => (run?.id === id && !run.isLive ? run : null);

  async function frames({ run: id, start }) {
    const of = find(id);
    if (!of) return null;
    const chunk = of.frames.slice(start, start + CHUNK_FRAMES);
    return { frames: await Promise.all(chunk.map((frame) => encode(of, frame))), total: of.frames.length };
  }

  async function closeup({ run: id, row }) {
    const of = find(id);
    if (!of) return null;
    const length = size.side ** 2 * size.channels;
    const toSheet = async (key) => {
      const tiles = new Uint8Array(of.frames.length * length);
      of.frames.forEach((frame, i) => tiles.set(frame[key].subarray(row * length, (row + 1) * length), i * length));
      return toPngUri(makeGrid(tiles, size, SHEET_COLUMNS));
    };
    const [x_t, x0] = await Promise.all([toSheet("x_t"), toSheet("x0")]);
    return { x_t, x0, indices: of.frames.map((frame) => frame.index), columns: SHEET_COLUMNS };
  }

  async function save({ run: id, kind, row }) {
    const of = run?.id === id && run.newest ? run : null;
    if (!of) return { problem: "the page no longer has this run; Generate makes it again from its seed" };
    try {
      const last = of.frames.at(-1) === of.newest ? [] : [of.newest];
      const { name, bytes } = await makeFile({ frames: [...of.frames, ...last], provenance: of.provenance, size }, kind, row);
      return { name, content: toUri("application/octet-stream", bytes) };
    } catch (error) {
      return { problem: error.message };
    }
  }

  // The run that was recorded when the page was made, with what the page can compute about it.
  async function recording() {
    const recorded = await (await fetch(`recording.json?${about.files["recording.json"].crc32}`)).json();
    const values = { ...defaultValues(about), ...recorded.values, random: false };
    const settings = toSettings(values, about);
    const { t } = planRun(about, settings);
    const frames = recorded.frames.map((frame) => ({ ...frame, time: t[frame.index - 1].t, log_snr: t[frame.index - 1].log_snr }));
    const words = describeRun(toProvenance(settings, about, "cpu"));
    return { timesteps: settings.timesteps, images: settings.images, settings: words, frames, ...toCurves(settings, about) };
  }

  return { start, stop, close, server: { frames, closeup, save, recording } };
}
