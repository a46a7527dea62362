// ---- one of several that are played by a clock: it says where to stand, and is told what has come

const tell = (type, detail) => player.dispatchEvent(new CustomEvent(type, { bubbles: true, detail }));

if (props.arm) {
  player.classList.add("arm");
  player.removeAttribute("tabindex"); // the clock has the keys
  player.hidden = true;

  watch("value", () => {
    const { state, label } = props.value || {};
    if (label) player.setAttribute("aria-label", ($(".label").textContent = label));
    if (state !== "stopped") player.hidden = !state || state === "idle";
    tell("news");
  });

  // What there is to play, added to what the other arms have said.
  player.addEventListener("survey", ({ detail }) => {
    const [first, last] = [run.frames[0], run.frames[run.frames.length - 1]];
    if (player.hidden || !last) return;
    detail.live ||= isLive();
    detail.steps = Math.max(detail.steps, run.timesteps);
    detail.share = Math.max(detail.share, last.index / run.timesteps);
    detail.low = Math.min(detail.low, first.log_snr);
    detail.high = Math.max(detail.high, last.log_snr);
  });

  // The last frame that does not lie beyond the clock; the first where all do.
  player.addEventListener("clock", ({ detail: { at, by } }) => {
    follow = at === null;
    const reached = (frame) => (by === "log_snr" ? frame.log_snr : frame.index / run.timesteps) <= at + 1e-9;
    seek(follow ? run.frames.length - 1 : Math.max(run.frames.findLastIndex(reached), 0));
  });

  // An image is looked at alone in all of them.
  player.addEventListener("image", ({ detail: row }) => {
    if (row === (single ? single.row : null)) return;
    if (row === null) leave();
    else if (row < run.images) look(row);
  });
  new MutationObserver(() => tell("chosen", single ? single.row : null)).observe(player, { attributeFilter: ["data-image"] });
  new MutationObserver(() => tell("news")).observe(player, { attributeFilter: ["data-kept"] });
}
