// The best possible prediction: what the model predicts for the selected image, beside what it would predict if it knew
// its training images by heart and nothing else, and the difference.
function createBest({ root, state, server, isWalking, isAvailable }) {
  const canvases = [...root.querySelectorAll(".inspector.best canvas")];
  const summary = root.querySelector(".best-summary");

  function show({ image, difference, possible, total, index }) {
    drawTiles(canvases, image);
    const many = possible < 1.05 ? "the one training image that is left" : `the mean of the ${possible.toFixed(possible < 10 ? 1 : 0)} training images (of ${total}) that are still possible, the likely ones most`;
    const far = difference < 5e-4 ? "The two are equal." : `They differ by ${difference.toFixed(3)} RMS: that is what the network has learned beyond copying, or gets wrong.`;
    summary.textContent = `The best possible prediction is ${many}. ${far}`;
    root.dataset.best = index;
  }

  function hide() {
    for (const canvas of canvases) canvas.classList.add("stale");
    delete root.dataset.best;
  }

  const [name, waiting, ask] = ["best", "Computing the best possible prediction…", server.best];
  createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show, hide });
}
