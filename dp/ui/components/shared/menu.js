// A button that opens a menu beside it. Escape and a click elsewhere close the menu.
function createMenu(button, menu) {
  const isOpen = () => !menu.hidden;

  function toggle(open = !isOpen()) {
    menu.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  }

  function close() {
    toggle(false);
    button.focus();
  }

  button.addEventListener("click", () => toggle());
  button.parentElement.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen()) return;
    event.stopPropagation();
    close();
  });
  document.addEventListener("pointerdown", ({ target }) => {
    if (isOpen() && !button.parentElement.contains(target)) toggle(false);
  });

  return { toggle, close, isOpen };
}
