// Guidance: what the network predicts for the selected image without its class and with it, and the two combined.
function createGuidance({ root, state, server, isWalking, isAvailable }) {
  const canvases = [...root.querySelectorAll(".inspector.guidance canvas")];
  const summary = root.querySelector(".guidance-summary");

  function show({ image, guidance, index, row, run }) {
    drawTiles(canvases, image);
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
