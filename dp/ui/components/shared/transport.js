// The buttons, the slider and the keys of transport.html in `root`.
//
// rate, end, show, onEnd   as in `createPlayback`; at the normal speed
// playFrom()   the position at which Play starts, or null if there is nothing to play
// goTo(position), step(±1), goLive()   the actions of the controls
// keys   actions of further keys; isIgnored(key)   whether a key is left to the browser
function createTransport({ root, rate, end, show, onEnd, playFrom, goTo, step, goLive, keys, isIgnored }) {
  const [back, play, forward, scrub, speed, live] = ["back", "play", "forward", "scrub", "speed", "live"].map((name) =>
    root.querySelector(`.transport .${name}`),
  );
  const playback = createPlayback({ root, rate: () => rate() * Number(speed.value), end, show, onEnd });

  function togglePlay() {
    if (playback.isPlaying()) return playback.pause();
    const from = playFrom();
    if (from !== null) playback.play(from);
  }

  const actions = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    Home: () => goTo(0),
    End: () => goTo(end()),
    " ": togglePlay,
    ...keys,
  };
  root.addEventListener("keydown", (event) => {
    const { key, target } = event;
    const isForControl = target.matches("select") || (target.closest("button") && (key === " " || key === "Enter"));
    if (!actions[key] || isForControl || isIgnored(key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[key]();
  });
  scrub.addEventListener("input", () => goTo(Number(scrub.value)));
  back.addEventListener("click", () => step(-1));
  forward.addEventListener("click", () => step(1));
  play.addEventListener("click", togglePlay);
  live.addEventListener("click", goLive);

  // Whether there is anything to play, whether more is still coming, and whether the newest frame is shown as it comes.
  function update({ isEnabled, isLive, isFollowing }) {
    for (const control of [back, play, forward, scrub]) control.disabled = !isEnabled;
    live.disabled = !isEnabled || !isLive;
    live.setAttribute("aria-pressed", String(isFollowing && isLive));
  }

  return { update, pause: playback.pause, isPlaying: playback.isPlaying };
}
