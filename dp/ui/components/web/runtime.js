// The network, computed by onnxruntime-web. Its files are ours, compressed with gzip, and are unpacked here.
//
// files: { name: { bytes, crc32 } } of everything that is fetched, relative to the page. The sums find a file that is
// damaged or of another version: one that is meant to deceive would come with a page of its own.
const BUILDS = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"],
};
const [GRAPH, WEIGHTS, EXPECTED] = ["model.onnx", "model.safetensors", "expected.bin"];
const MOST_ROWS = 16; // of one network call: more would only take more memory, and be slower to stop
const TOLERANCE = 1e-3; // of the largest value, as in dp/serving/backends.py
const [CHECKED_TIME, CHECKED_ROWS] = [[0.8, 0.2], 2];

const runtimeFiles = (build) => BUILDS[build].map((name) => `runtime/${name}.gz`);

// Fetch files, several at a time. onProgress(received, total): bytes.
async function fetchFiles(names, files, { onProgress, signal }) {
  const total = names.reduce((sum, name) => sum + files[name].bytes, 0);
  let received = 0;
  const count = (bytes) => onProgress((received += bytes), total);
  const contents = await Promise.all(names.map((name) => fetchFile(name, files[name], count, signal)));
  return Object.fromEntries(names.map((name, i) => [name, contents[i]]));
}

async function fetchFile(name, about, count, signal) {
  const content = await download(name, about, "default", count, signal);
  if (isIntact(name, content, about)) return content;
  count(-content.length);
  const again = await download(name, about, "reload", count, signal); // past the browser's caches
  if (isIntact(name, again, about)) return again;
  const [has, due] = [again.length, about.bytes].map((bytes) => bytes.toLocaleString("en"));
  const what = has === due ? "other content than when it was made" : `${has} instead of ${due} bytes`;
  throw new Error(`the page's file ${name} is damaged, with ${what}: its owner has to upload it again`);
}

async function download(name, { crc32 }, cache, count, signal) {
  // The address changes with the content, so that no cache has an older one under it.
  const response = await fetch(`${name}?${crc32}`, { signal, cache }).catch((error) => {
    throw signal.aborted ? error : new Error(`${name} cannot be reached: check the connection, then press Generate again`);
  });
  if (!response.ok) throw new Error(`the page's file ${name} is missing (error ${response.status}): its owner has to upload it again`);
  const reader = response.body.getReader();
  const parts = [];
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Error(`the download of ${name} was interrupted: press Generate again`);
    });
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    count(value.length);
  }
}

// A server may have unpacked a file already, and its sum is that of the packed one.
function isIntact(name, content, { bytes, crc32 }) {
  if (name.endsWith(".gz") && content.length > bytes && !isGzip(content)) return true;
  return content.length === bytes && checksum(content) === crc32;
}

const isGzip = (content) => content[0] === 0x1f && content[1] === 0x8b;

async function unpack(content) {
  if (!isGzip(content)) return content;
  const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const toAddress = (content, type) => URL.createObjectURL(new Blob([content], { type }));

// Whether a graphics processor can compute here: an adapter that is none in name only, and a browser that lets
// WebAssembly wait for it.
async function canUseGpu() {
  if (!navigator.gpu || typeof WebAssembly.Suspending !== "function") return false;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
}

// Return { infer, release, build, lost } for a build. Raises an Error if it does not compute what the library does.
// fetched: the content of its files. lost: a promise of the reason why the graphics processor was lost.
async function openNetwork(build, model, fetched) {
  const [script, loader, binary] = await Promise.all(runtimeFiles(build).map((name) => unpack(fetched[name])));
  const addresses = [script, loader].map((content) => toAddress(content, "text/javascript"));
  let ort;
  try {
    ort = await import(addresses[0]);
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: binary.buffer, wasmPaths: { mjs: addresses[1] } });
    const session = await ort.InferenceSession.create(fetched[GRAPH], {
      executionProviders: [build],
      logSeverityLevel: 4, // what fails is thrown, too
      externalData: [{ path: WEIGHTS, data: fetched[WEIGHTS] }],
    });
    const lost = build === "webgpu" ? (await ort.env.webgpu.device).lost : new Promise(() => {});
    const opened = { build, lost, infer: createInference(ort, session, model), release: () => session.release() };
    await checkNetwork(opened.infer, model, new Float32Array(fetched[EXPECTED].slice().buffer));
    return opened;
  } finally {
    addresses.map(URL.revokeObjectURL);
  }
}

// A function that computes any number of rows, MOST_ROWS in one call.
function createInference(ort, session, model) {
  const { channels, image_size: side, latents: size, num_classes: classes } = model.network;
  const lengths = { x: channels * side * side, time: 1, x0: channels * side * side, latents: size[0] * size[1] };

  function makeFeeds(inputs, from, to) {
    const count = to - from;
    const tensor = (key, ...dims) => new ort.Tensor("float32", inputs[key].slice(from * lengths[key], to * lengths[key]), [count, ...dims]);
    const feeds = {
      x: tensor("x", channels, side, side),
      time: tensor("time"),
      x_self_cond: tensor("x0", channels, side, side),
      latents: tensor("latents", ...size),
    };
    if (classes) feeds.condition = new ort.Tensor("int64", BigInt64Array.from(inputs.condition.slice(from, to), BigInt), [count]);
    return feeds;
  }

  return async (inputs, rows) => {
    const prediction = new Float32Array(rows * lengths.x);
    const latents = new Float32Array(rows * lengths.latents);
    for (let from = 0; from < rows; from += MOST_ROWS) {
      const feeds = makeFeeds(inputs, from, Math.min(from + MOST_ROWS, rows));
      const outputs = await session.run(feeds);
      prediction.set(outputs.prediction.data, from * lengths.x);
      latents.set(outputs.latents_after.data, from * lengths.latents);
      for (const value of [...Object.values(feeds), ...Object.values(outputs)]) value.dispose();
      await new Promise((resolve) => setTimeout(resolve)); // messages are received only between tasks
    }
    return { prediction, latents };
  };
}

// Compare with what the library computed for random inputs when the page was made.
async function checkNetwork(infer, model, expected) {
  const [pixels, size] = [pixelsOf(model), latentsOf(model)];
  const streams = makeStreams({ images: CHECKED_ROWS, seed: 0 });
  const draw = (count) => drawNoise(streams, count);
  const inputs = { x: draw(pixels), x0: draw(pixels).map((value) => clamp(value, -1, 1)), latents: draw(size) };
  const condition = [0, model.network.num_classes];
  const outputs = await infer({ ...inputs, time: Float32Array.from(CHECKED_TIME), condition }, CHECKED_ROWS);
  const own = [outputs.prediction, outputs.latents];
  let start = 0;
  for (const values of own) {
    const reference = expected.subarray(start, (start += values.length));
    const largest = reference.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
    const far = values.reduce((most, value, i) => Math.max(most, Math.abs(value - reference[i])), 0) / largest;
    if (!(far <= TOLERANCE)) throw new Error(`its results differ from the model's by ${far.toPrecision(2)} of the largest`);
  }
}
