// Runs that this browser computes: web/local_runs.js does, and is loaded for the first of them.
function createBrowserRuns({ state, server, receive, isLive }) {
  let loading = null;
  let taken = null; // the newest run: Gradio sends an event's last value twice

  const isLocal = (id) => Boolean(id?.startsWith("browser-"));

  function take({ state: name, run, here, ...begun }) {
    if (name === "browser" && run !== taken) start(run, here, begun);
    return name === "browser";
  }

  async function start(run, here, begun) {
    taken = run;
    receive({ ...begun, run, state: "waiting", heartbeat: 0 });
    loading ||= import(new URL(here.script, document.baseURI)).then((scripts) => scripts.createLocalRuns({ state, receive }));
    const runs = await loading.catch(() => (loading = null));
    if (state.run.id !== run || !isLive()) return;
    if (runs) runs.start(run, here);
    else receive({ run, state: "failed", message: "No answer from the server. Try again." });
  }

  document.addEventListener("click", ({ target }) => {
    const { id: run, frames } = state.run;
    if (!target.closest("#stop") || !isLocal(run) || !isLive()) return;
    taken = run;
    loading?.then((runs) => runs.stop());
    if (!frames.length) receive({ run, state: "stopped" });
  });

  const ask = (key) => async (data) => (isLocal(data.run) ? ((await loading)?.ask(key, data) ?? null) : server[key](data));
  return { take, isLocal, server: { frames: ask("frames"), closeup: ask("closeup"), save: ask("save") } };
}
