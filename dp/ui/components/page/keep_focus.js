() => {
  // Generate and Stop replace each other. Move the keyboard focus along, which would otherwise return to the page's top.
  const buttons = "#generate, #stop, #compare, #compare-stop";
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
    other?.focus({ preventScroll: true });
  }).observe(document.body, { subtree: true, attributeFilter: ["aria-busy"] });
}
