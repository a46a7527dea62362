// The worker of an exported page: it loads the network when it is first needed, and samples one run at a time.
//
// It receives { type: "run", id, model, files, settings, builds } and { type: "stop" }, and sends, each with the `id` of
// the run, { type: "progress", received, total }, { type: "frame", index, x_t, x0, moved } with the images as bytes, and at
// the end { type: "done" | "stopped" | "failed", problem }. builds: those that may compute, in order: of several, the one
// for graphics processors is left out where there is none.
let network = null; // what `openNetwork` returned
let current = null; // the newest run: { id, abort }
let last = Promise.resolve(); // of the runs, which come one after the other

self.onmessage = ({ data }) => {
  if (data.type === "stop") return current?.abort.abort();
  const run = (current = { id: data.id, abort: new AbortController() });
  last = last.then(() => compute(run, data));
};

async function compute({ id, abort: { signal } }, data) {
  const send = (message, transfer) => self.postMessage({ id, build: network?.build, ...message }, transfer);
  try {
    if (network && !data.builds.includes(network.build)) await close();
    if (!signal.aborted) network ||= await load(data, signal, (received, total) => send({ type: "progress", received, total }));
    if (!signal.aborted) await sample(data, signal, send);
    send({ type: signal.aborted ? "stopped" : "done" });
  } catch (error) {
    send(signal.aborted ? { type: "stopped" } : { type: "failed", problem: error.message, wasLost: error.wasLost });
  }
}

async function close() {
  const { release } = network;
  network = null;
  await release();
}

async function load({ model, files, builds }, signal, onProgress) {
  if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly, or its settings forbid it, so it cannot compute the model");
  if (typeof DecompressionStream !== "function") throw new Error("this browser is too old to compute the model: it cannot unpack gzip files");
  if (builds[0] === "webgpu" && builds.length === 1 && (!navigator.gpu || typeof WebAssembly.Suspending !== "function"))
    throw new Error("this browser lets no page use a graphics processor (WebGPU): under Compute on, choose the processor");
  const usable = builds.length === 1 || (await canUseGpu()) ? builds : builds.filter((build) => build !== "webgpu");
  const fetched = {};
  let reason = null;
  for (const build of usable) {
    const names = [...runtimeFiles(build), GRAPH, WEIGHTS, EXPECTED].filter((name) => !fetched[name]);
    Object.assign(fetched, await fetchFiles(names, files, { onProgress, signal }));
    try {
      const opened = await openNetwork(build, model, fetched);
      opened.lost.then(() => {
        if (network === opened) network = null; // the next run loads it again
      });
      return opened;
    } catch (error) {
      console.info(`${build}: ${error.message}`);
      reason = error;
    }
  }
  throw new Error(`this browser does not compute the model: ${reason.message}`);
}

async function sample({ model, settings }, signal, send) {
  const lost = network.lost.then(({ message }) => {
    throw Object.assign(new Error(`the graphics processor was lost (${message || "no reason given"}); press Generate to draw on the processor`), { wasLost: true });
  });
  lost.catch(() => {}); // while nothing is computed
  const infer = (inputs, rows) => Promise.race([network.infer(inputs, rows), lost]);
  for await (const { index, x_t, x0, moved } of sampleImages(model, settings, infer)) {
    if (signal.aborted) return;
    const images = [x_t, x0].map((values) => toBytes(values, model.network, settings.images));
    send({ type: "frame", index, x_t: images[0], x0: images[1], moved }, images.map((bytes) => bytes.buffer));
  }
}

// Images in [-1, 1], channels first, as bytes with channels last.
function toBytes(values, { channels, image_size: side }, images) {
  const area = side * side;
  const bytes = new Uint8ClampedArray(values.length); // it rounds to nearest
  for (let image = 0; image < images; image++)
    for (let channel = 0; channel < channels; channel++)
      for (let i = 0; i < area; i++)
        bytes[(image * area + i) * channels + channel] = (values[(image * channels + channel) * area + i] + 1) * 127.5;
  return new Uint8Array(bytes.buffer);
}
