// Branch: the endings of the selected image from the shown step on, and how many of them are left at each step that was
// looked at. The server makes each step's endings once; the page keeps them until another run is shown.
function createEndings({ root, state, server, isWalking, isAvailable, goTo }) {
  const [tiles, summary, canvas] = [".endings .tiles", ".endings-summary", ".endings-left canvas"].map((name) => root.querySelector(name));
  let known = { run: null, answers: new Map() }; // of one run, by image and step
  let newest = null; // the step that was asked for last
  let underWay = null; // a promise while the server makes endings
  let scales = null; // of the chart

  const keyOf = (row, index) => `${row}/${index}`;
  const countOf = ({ groups }) => new Set(groups).size;

  // One request at a time: those that are superseded while they wait are never sent.
  async function ask({ run, row, index }) {
    if (known.run !== run) known = { run, answers: new Map() };
    const [{ answers }, key] = [known, keyOf(row, index)];
    newest = key;
    while (underWay && !answers.has(key)) await underWay;
    if (answers.has(key)) return answers.get(key);
    if (newest !== key) return null; // nobody waits for it any more
    underWay = server.endings({ run, row, index }).catch(() => null);
    const answer = await underWay;
    underWay = null;
    if (answer && !answer.problem) answers.set(key, answer);
    return answer;
  }

  // The endings of one group stand side by side, and the largest group comes first.
  function show({ image, groups, distance, index, run }) {
    const side = image.height;
    const sizeOf = (group) => groups.filter((other) => other === group).length;
    const sorted = [...new Set(groups)].sort((a, b) => sizeOf(b) - sizeOf(a));
    const order = sorted.flatMap((group) => groups.flatMap((other, ending) => (other === group ? [ending] : [])));
    tiles.replaceChildren(...order.map((ending) => {
      const [item, picture, letter] = ["li", "canvas", "span"].map((tag) => document.createElement(tag));
      [picture.width, picture.height] = [side, side];
      picture.getContext("2d").drawImage(image, ending * side, 0, side, side, 0, 0, side, side);
      picture.setAttribute("role", "img");
      letter.textContent = String.fromCharCode(65 + sorted.indexOf(groups[ending]));
      picture.setAttribute("aria-label", `An ending of kind ${letter.textContent}`);
      item.append(picture, letter);
      return item;
    }));
    tiles.classList.remove("stale");
    summary.textContent = describe(sorted.length, groups.length, distance, index, run);
    drawChart();
    root.dataset.endings = `${index}/${sorted.length}`;
  }

  function describe(left, count, distance, index, run) {
    const from = `From step ${index} of ${run.timesteps}`;
    const apart = `On average, two endings are ${distance.toFixed(2)} apart (RMS; black to white is 1).`;
    if (left === count) return `${from}, all ${count} endings are different. ${apart}`;
    if (left > 1) return `${from}, ${left} different endings are left of ${count}. ${apart}`;
    const why = index === run.timesteps ? "The last step adds no noise, so nothing is left to chance." : apart;
    return `${from}, one ending is left: the image is decided, up to its details. ${why}`;
  }

  function hide() {
    tiles.classList.add("stale");
    delete root.dataset.endings;
  }

  function drawChart() {
    const { run, selected, position } = state;
    const fitted = run.id === known.run && selected && fitCanvas(canvas);
    if (!fitted) return;
    const points = run.frames.map(({ index }) => index).filter((index) => known.answers.has(keyOf(selected.row, index)));
    const values = points.map((index) => [index, countOf(known.answers.get(keyOf(selected.row, index)))]);
    scales = createScales(fitted, { x: [1, Math.max(run.timesteps, 2)], y: [0, 8] });
    const { pen, height } = fitted;
    drawAxes(fitted, root, scales, { xTicks: roundTicks(1, run.timesteps, 5).filter(Number.isInteger), yTicks: [1, 4, 8], xName: "step" });
    const style = (name) => getComputedStyle(root).getPropertyValue(name);
    pen.strokeStyle = style("--body-text-color-subdued");
    const shown = scales.x(run.frames[position].index);
    drawLine(pen, [[shown, CHART.top], [shown, height - CHART.bottom]]);
    pen.strokeStyle = pen.fillStyle = style("--color-accent");
    const places = values.map(([index, left]) => [scales.x(index), scales.y(left)]);
    drawLine(pen, places);
    for (const [x, y] of places) {
      pen.beginPath();
      pen.arc(x, y, 4, 0, 2 * Math.PI);
      pen.fill();
    }
    canvas.setAttribute("aria-label", `Endings left: ${values.map(([index, left]) => `${left} at step ${index}`).join(", ")}`);
  }

  canvas.addEventListener("click", (event) => {
    if (!scales) return;
    const { frames } = state.run;
    const distance = ({ index }) => Math.abs(index - scales.value(event.offsetX));
    goTo(frames.reduce((best, frame, i) => (distance(frame) < distance(frames[best]) ? i : best), 0));
  });
  new ResizeObserver(() => root.dataset.endings && drawChart()).observe(canvas);

  const [name, waiting] = ["endings", "Making the endings…"];
  createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show, hide });
}
