// Before the first run of a page: a recorded run of its model, over and over, so that the page is not empty.
function createRecording({ server, isIdle, showRun, seek }) {
  const FRAME_MS = 250;
  const PAUSE_FRAMES = 8; // on the result
  let timer = null;

  async function begin() {
    const recorded = await server.recording({}).catch(() => null);
    if (!recorded || !isIdle()) return;
    showRun(recorded);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) loop(recorded.frames.length);
  }

  function loop(count) {
    let at = 0;
    const advance = () => {
      if (document.hidden) return;
      seek(Math.min(at, count - 1));
      at = (at + 1) % (count + PAUSE_FRAMES);
    };
    advance();
    timer = setInterval(advance, FRAME_MS);
  }

  begin();
  return { stop: () => clearInterval(timer) };
}
