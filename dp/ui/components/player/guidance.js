// Guidance: what the network predicts for the selected image without its class and with it, and the two combined.
function createGuidance({ root, state, server, isWalking, isAvailable }) {
  const canvases = [...root.querySelectorAll(".predictions canvas")];
  const summary = root.querySelector(".guidance-summary");

  function show({ image, guidance, index, row, run }) {
    const side = image.height;
    canvases.forEach((canvas, i) => {
      [canvas.width, canvas.height] = [side, side];
      canvas.getContext("2d").drawImage(image, i * side, 0, side, side, 0, 0, side, side);
      canvas.classList.remove("stale");
    });
    const name = run.classes[row];
    root.querySelector(".class-name").textContent = name;
    const sum = `no class + ${guidance} × (${name} − no class)`;
    const plain = `Guidance is 1 in this step, so the guided prediction is the one for ${name}.`;
    summary.textContent = guidance === 1 ? plain : `guided = ${sum}`;
    root.dataset.guidance = index;
  }

  function hide() {
    for (const canvas of canvases) canvas.classList.add("stale");
    delete root.dataset.guidance;
  }

  const [name, waiting, ask] = ["guidance", "Computing the predictions…", server.branches];
  createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show, hide });
}
