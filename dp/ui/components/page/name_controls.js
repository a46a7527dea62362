() => {
  // Add the names and states that Gradio's controls lack: of groups of choices, of reset buttons and of folds.
  const nameOf = (block) => block?.querySelector("[data-testid=block-info]")?.textContent.trim();
  let isDue = false;

  function nameControls() {
    isDue = false;
    for (const group of document.querySelectorAll("fieldset:not([aria-label])"))
      if (nameOf(group)) group.setAttribute("aria-label", nameOf(group));
    for (const reset of document.querySelectorAll("[aria-label='Reset to default value']"))
      reset.setAttribute("aria-label", `Reset ${nameOf(reset.closest(".block"))}`);
    for (const fold of document.querySelectorAll(".label-wrap")) {
      const isOpen = String(fold.classList.contains("open"));
      if (fold.getAttribute("aria-expanded") !== isOpen) fold.setAttribute("aria-expanded", isOpen);
    }
  }

  function nameSoon() {
    if (!isDue) requestAnimationFrame(nameControls);
    isDue = true;
  }

  new MutationObserver(nameSoon).observe(document.body, { subtree: true, childList: true, attributeFilter: ["class"] });
  nameSoon();
}
