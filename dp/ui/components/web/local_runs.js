// In the app: runs that this browser computes, as the server describes them (`dp.ui.browser_models.browser_run`). They
// come from the same source as those of an exported page.
function createLocalRuns({ state, receive }) {
  const ADVICE = "To draw on the server instead, choose This server under Compute on.";
  const KINDS = ["png", "png4", "png8", "images", "strip", "zip"]; // of files that the browser makes
  let source = null; // of the newest run's model
  let name = null; // of that model
  let newest = null; // the id of a run

  const toArray = (text) => text && new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const isCurrent = () => state.run.id === newest;
  const tell = (message) => receive({ run: newest, state: "waiting", heartbeat: performance.now(), message });

  function start(run, { base, model, settings }) {
    newest = run;
    tell("Starting…");
    if (name !== base + model.name) {
      source?.close();
      source = createSource({ about: model, base, emit: show, onChange });
      name = base + model.name;
    }
    source.start({ ...settings, start: toArray(settings.start), mask: toArray(settings.mask) }, ["webgpu", "wasm"], run);
  }

  // The server has begun the run already, so a value that begins it is one like any other.
  function show(value) {
    if (value.run !== newest || !isCurrent()) return;
    const settings = value.settings && { settings: `${value.settings} · in your browser` };
    const failed = value.state === "failed" && { message: `${value.message} ${ADVICE}` };
    receive({ ...value, ...settings, ...failed, ...(value.state === "waiting" ? { state: "running" } : {}) });
  }

  function onChange({ isBusy, progress, problem }) {
    if (!isCurrent()) return;
    if (progress) tell(describe(progress));
    if (!isBusy && problem && !state.run.frames.length) receive({ run: newest, state: "failed", message: `${problem} ${ADVICE}` });
  }

  function describe([received, total]) {
    const [has, due] = [received, total].map((bytes) => (bytes / 1e6).toFixed(1));
    return received < total ? `Fetching the model, once: ${has} of ${due} MB` : "Preparing the model…";
  }

  function ask(key, data) {
    if (key === "save" && !KINDS.includes(data.kind)) return { problem: "only the server makes files of this kind" };
    return source?.server[key](data);
  }

  return { start, ask, stop: () => source?.stop() };
}
