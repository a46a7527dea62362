() => {
  // Generate and Stop replace each other.
  const buttons = "#generate, #stop, #compare, #compare-stop";

  // The second click of a double click must not press the button that has just appeared under the pointer.
  document.addEventListener(
    "click",
    (event) => event.detail > 1 && event.target.closest(buttons) && event.stopImmediatePropagation(),
    true, // before Gradio's own listener
  );

  // Move the keyboard focus along, which would otherwise return to the page's top: from Generate to what plays the run.
  let focused = null;
  document.addEventListener("focusin", ({ target }) => {
    focused = target.matches(buttons) ? target : null;
  });
  document.addEventListener("pointerdown", ({ target }) => {
    focused = target.closest(buttons);
  });
  new MutationObserver(() => {
    if (!focused || focused.checkVisibility()) return;
    const other = [...focused.parentElement.querySelectorAll(buttons)].find((button) => button.checkVisibility());
    const player = [...document.querySelectorAll(".player:not(.variant), .clock")].find((each) => each.checkVisibility());
    (focused.matches("#generate, #compare") ? player : other)?.focus({ preventScroll: true });
  }).observe(document.body, { subtree: true, attributeFilter: ["aria-busy"] });
}
