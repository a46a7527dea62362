// Go to a moment of the run that is shown: one image or all, with one panel open, played up to a step.
function createMoment({ root, state, selection, seek, pause }) {
  const FRAME_MS = 90;

  const isOpen = (toggle) => toggle.ariaPressed === "true" || toggle.ariaExpanded === "true";

  // Open the panel of that name and close the others.
  function openOnly(panel) {
    for (const toggle of root.querySelectorAll('[class$="-toggle"]')) {
      const isWanted = toggle.classList.contains(`${panel}-toggle`);
      if (isOpen(toggle) !== isWanted) toggle.click();
    }
  }

  root.addEventListener("show-moment", ({ detail: { step, image, panel } }) => {
    pause();
    state.isFollowing = false;
    if (image === null) selection.showAll();
    else selection.showImage(image);
    openOnly(panel);
    const { run } = state;
    const last = run.frames.findLastIndex((frame) => frame.index <= step);
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let position = isCalm ? last : 0;
    const next = () => {
      if (run !== state.run || (position && state.position !== position - 1 && !isCalm)) return; // the visitor went elsewhere
      seek(position);
      if (position++ < last) setTimeout(next, FRAME_MS);
    };
    next();
  });
}
