// A player that a clock controls, together with others. It sends and receives DOM events: the clock finds the players
// on the page, as Gradio gives components no other way to know each other.
function createVariant({ root, state, props, watch, isLive, seek, selection, changeOf, showRecorded }) {
  const send = (type, detail) => root.dispatchEvent(new CustomEvent(type, { bubbles: true, detail }));
  root.classList.add("variant");
  root.removeAttribute("tabindex"); // the clock takes the keys
  root.hidden = true;

  const setLabel = (label) => root.setAttribute("aria-label", (root.querySelector(".label").textContent = label));

  watch("value", () => {
    const { state: name, label } = props.value || {};
    if (label) setLabel(label);
    if (name !== "stopped") root.hidden = !name || name === "idle";
    send("variant-changed");
  });

  // Add what this variant has to play to what others have.
  root.addEventListener("clock-collect", ({ detail }) => {
    const { run } = state;
    const last = run.frames.at(-1);
    if (root.hidden || !last) return;
    detail.isLive ||= isLive();
    detail.steps = Math.max(detail.steps, run.timesteps);
    detail.fraction = Math.max(detail.fraction, last.index / run.timesteps);
    detail.levels.push(...run.frames.map((frame) => frame.log_snr));
    const point = (frame, i) => ({ share: frame.index / run.timesteps, log_snr: frame.log_snr, change: i ? changeOf(frame) : NaN });
    const { id, isRecalled } = run;
    const label = root.getAttribute("aria-label");
    detail.runs.push({ player: root, id, isRecalled, label, points: run.frames.map(point), shown: () => state.position, step: () => run.frames[state.position]?.index });
  });

  // Show the last frame that is not beyond the clock, or the first if all are.
  root.addEventListener("clock-seek", ({ detail: { at, alignBy } }) => {
    const { run } = state;
    state.isFollowing = at === null;
    const isReached = (frame) => (alignBy === "log_snr" ? frame.log_snr : frame.index / run.timesteps) <= at + 1e-9;
    seek(state.isFollowing ? run.frames.length - 1 : Math.max(run.frames.findLastIndex(isReached), 0));
  });

  // Show a recorded run up to the step `until`.
  root.addEventListener("clock-record", ({ detail: { label, frames, until = Infinity, ...about } }) => {
    setLabel(label);
    root.hidden = false;
    const shown = frames.filter(({ index }) => index <= until);
    showRecorded({ ...about, until, frames: shown.map((frame) => ({ ...frame })) });
    send("variant-changed");
  });

  // Another comparison begins. Gradio sends nothing to a player that has no part in it and had none before.
  root.addEventListener("clock-clear", () => {
    if (state.value.state === "recorded") root.hidden = true;
  });

  // The same image is selected in all variants.
  root.addEventListener("clock-select", ({ detail: row }) => {
    if (row === (state.selected?.row ?? null)) return;
    if (row === null) selection.showAll();
    else if (row < state.run.images) selection.showImage(row);
  });
  const onSelect = () => send("variant-selected", state.selected?.row ?? null);
  new MutationObserver(onSelect).observe(root, { attributeFilter: ["data-image"] });
  new MutationObserver(() => send("variant-changed")).observe(root, { attributeFilter: ["data-kept"] });
}
