// On a phone, a small copy of the prediction stays in the window, beside Generate. A click goes to the images.
function createMini({ root, panes }) {
  const button = root.querySelector(".mini");
  const canvas = button.querySelector("canvas");

  function draw() {
    const source = panes.canvases.x0;
    if (source.width < 2 || !button.checkVisibility()) return;
    [canvas.width, canvas.height] = [source.width, source.height];
    canvas.getContext("2d").drawImage(source, 0, 0);
  }

  button.addEventListener("click", () => root.scrollIntoView({ block: "start" }));
  new MutationObserver(draw).observe(root, { attributeFilter: ["data-step", "data-image"] });
}
