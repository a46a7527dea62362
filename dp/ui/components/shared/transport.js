// The buttons, the slider and the keys of transport.html in `root`.
//
// rate, end, show, onEnd   as in `createPlayback`; at the normal speed
// playFrom()   the position at which Play starts, or null if there is nothing to play
// goTo(position), step(±1), goLive()   the actions of the controls
// keys   actions of further keys while the focus is in `root`; isIgnored(key)   whether a key is left to the browser
// shortcuts   [keys, words] for the list that the "?" button and key show
//
// Arrows, Home, End and the space bar act on the page that is shown wherever the focus is, except in a control that
// uses them itself.
function createTransport({ root, rate, end, show, onEnd, playFrom, goTo, step, goLive, keys, isIgnored, shortcuts }) {
  const USES_KEYS = "input, select, textarea, [contenteditable], [role=radio], [role=slider], [role=tab], [role=listbox]";
  const RUN_BUTTONS = "#generate, #stop, #compare, #compare-stop"; // Enter presses them
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
    "?": () => help.toggle(),
  };

  function onKey(event) {
    const { key, target } = event;
    const isInside = root.contains(target);
    const action = actions[key] || (isInside && keys[key]);
    if (!action || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isIgnored(key)) return;
    const isPress = target.closest("button, a, summary") && !target.closest(RUN_BUTTONS) && (key === " " || key === "Enter");
    if (isPress || (isInside ? target.matches("select") : target.closest(USES_KEYS) || (key !== "?" && play.disabled))) return;
    event.preventDefault();
    // A button is pressed when the space bar is released.
    if (key === " ") target.addEventListener("keyup", (release) => release.preventDefault(), { once: true });
    action();
  }

  const list = root.querySelector(".key-list");
  for (const [names, words] of shortcuts)
    for (const [tag, textContent] of [["dt", names], ["dd", words]])
      list.append(Object.assign(document.createElement(tag), { textContent }));
  const help = createMenu(root.querySelector(".show-keys"), list);
  // Gradio may create this component again, with its tab.
  document.addEventListener("keydown", (event) => root.isConnected && scrub.checkVisibility() && onKey(event));
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

  update({ isEnabled: false, isLive: false, isFollowing: true });
  return { update, togglePlay, pause: playback.pause, isPlaying: playback.isPlaying };
}
