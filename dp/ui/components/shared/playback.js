// Play a sequence: from a position to `end()`, at `rate()` positions per second. `show` draws a position, and `onEnd`
// what stays after the last one. The Play button in `root` and the class `playing` of `root` follow.
function createPlayback({ root, rate, end, show, onEnd }) {
  let request = null;

  function mark(isPlaying) {
    root.classList.toggle("playing", isPlaying);
    root.querySelector(".play").setAttribute("aria-label", isPlaying ? "Pause" : "Play");
  }

  function play(from) {
    let [at, before] = [from, null];
    const advance = (now) => {
      at += ((now - (before ?? now)) / 1000) * rate();
      before = now;
      if (at < end()) {
        request = requestAnimationFrame(advance);
        return show(at);
      }
      pause();
      onEnd();
    };
    mark(true);
    request = requestAnimationFrame(advance);
  }

  function pause() {
    if (request !== null) cancelAnimationFrame(request);
    request = null;
    mark(false);
  }

  return { play, pause, isPlaying: () => request !== null };
}
