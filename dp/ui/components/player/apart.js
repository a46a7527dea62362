// One step taken apart: the noisy image before and after it, with the shares of image and noise; then two equations with
// a picture above each term. The same quantity is highlighted in both.
function createApart({ root, state, server, isWalking, isAvailable }) {
  // By quantity: its place on the sheet, its symbol, a name for the picture, and what it is.
  const PARTS = {
    x_t: [0, "xₜ", "noisy image", "The noisy image before this step: what the model sees."],
    x0: [1, "x₀", "prediction", "The finished image, as the model predicts it in this step."],
    noise: [2, "noise", "predicted noise", "What is left of the noisy image without the prediction: the noise, as the model sees it. Black and white are negative and positive, and gray is none."],
    change: [3, "change", "x₀ − previous x₀", "How the prediction has changed since the step before. The sampler expects it to go on changing in this direction."],
    fresh: [4, "fresh", "fresh noise", "New random noise, drawn for this step."],
    x_s: [5, "xₛ", "next noisy image", "What this step leads to: the noisy image of the next step."],
  };
  const AMPLIFIED = 6; // the place of the amplified x_t
  const [panel, amplify, amplified] = [".inspector.apart", ".amplify", ".amplified"].map((name) => root.querySelector(name));
  const [recipe, notes, meaning, summary] = [".recipe", ".notes", ".meaning", ".apart-summary"].map((name) => root.querySelector(name));
  const [squares, sum] = [".squares", ".sum"].map((name) => root.querySelector(name));
  const [before, after] = [panel.querySelector(".at-start"), panel.querySelector(".at-end")];
  let shown = null; // the answer of the server

  const split = createEquation(panel.querySelector(".split"), ["x_t", "x0", "noise"]);
  const mix = createEquation(panel.querySelector(".mix"), ["x_s", "x_t", "x0", "change", "fresh"]);

  // The first part equals the sum of the others. The terms stay in the page, so that one that has the focus keeps it.
  function createEquation(parent, names) {
    const terms = names.map((name) => {
      const [term, canvas] = ["div", "canvas"].map((tag) => document.createElement(tag));
      const [sign, button, caption] = ["span", "button", "span"].map((tag) => document.createElement(tag));
      Object.assign(term, { className: "term" }).dataset.part = name;
      Object.assign(canvas, { width: 1, height: 1 }).setAttribute("role", "img");
      Object.assign(button, { type: "button", className: "symbol" });
      [sign.className, caption.className] = ["sign", "caption"];
      term.append(sign, canvas, button, caption);
      return term;
    });
    parent.append(...terms);
    return terms;
  }

  // One factor, never negative, for each part after the first; a part whose factor is 0 is left out.
  function write(terms, factors) {
    let sign = "";
    terms.forEach((term, i) => {
      const [name, factor] = [term.dataset.part, i ? factors[i - 1] : 1];
      const [place, symbol] = PARTS[name];
      term.hidden = factor < 1e-9; // or what rounding leaves of 0
      term.querySelector(".sign").textContent = sign;
      if (!term.hidden) sign = i ? "+" : "=";
      term.querySelector(".symbol").textContent = i ? `${formatFactor(factor)} · ${symbol}` : symbol;
      const caption = (term.querySelector(".caption").textContent = captionOf(name));
      drawPart(term.querySelector("canvas"), name === "x_t" && isAmplified() ? AMPLIFIED : place, caption);
    });
  }

  function captionOf(name) {
    if (name === "x_s" && isLast()) return "the result";
    if (name === "x_t" && isAmplified()) return `${PARTS[name][2]}, amplified`;
    return name === "change" && shown.stretch > 1 ? `${PARTS[name][2]}, shown ${shown.stretch}× as strong` : PARTS[name][2];
  }

  function inOneLine(terms) {
    const texts = (term) => [".sign", ".symbol"].map((name) => term.querySelector(name).textContent);
    return terms.filter((term) => !term.hidden).flatMap(texts).join(" ").trim();
  }

  function drawPart(canvas, place, words) {
    const side = shown.image.height;
    [canvas.width, canvas.height] = [side, side];
    canvas.getContext("2d").drawImage(shown.image, place * side, 0, side, side, 0, 0, side, side);
    canvas.setAttribute("aria-label", words);
  }

  const isAmplified = () => amplify.getAttribute("aria-pressed") === "true";
  const isLast = () => shown.index === shown.run.timesteps;

  function draw() {
    const { alpha, sigma, coefficients, index, run } = shown;
    const [a, b, , d] = coefficients;
    const left = a * alpha + b; // of the image in the next noisy one, where the prediction is right
    writeLevel(before, "x_t", `Before step ${index}`, alpha, sigma);
    writeLevel(after, "x_s", isLast() ? "The result" : `After step ${index}`, left, Math.hypot(a * sigma, d));
    write(split, [alpha, sigma]);
    write(mix, coefficients);
    recipe.textContent = isLast() ? "Then the sampler makes the result of these:" : "Then the sampler mixes the next noisy image from this one and the prediction:";
    // With an input scale below 1, the squares do not add up to 1.
    const isWhole = Math.abs(alpha ** 2 + sigma ** 2 - 1) < 1e-3;
    squares.textContent = isWhole ? `Squared, they are the shares above: ${square(alpha)} and ${square(sigma)}.` : "";
    sum.textContent = isWhole && a ? `So ${formatFactor(a)} · ${formatFactor(alpha)} + ${formatFactor(b)} = ${formatFactor(left)} of the image is in it: ${square(left)}.` : "";
    notes.textContent = shown.notes;
    amplified.textContent = isAmplified() ? describeAmplified() : "";
    summary.textContent = `Step ${index} of ${run.timesteps}: ${inOneLine(split)}; ${inOneLine(mix)}`;
    panel.classList.remove("outdated");
    root.dataset.apart = index;
  }

  const square = (factor) => `${formatFactor(factor)}² = ${formatPercent(factor ** 2)}`;

  // A noisy image of this level, with the shares of image and noise in its variance.
  function writeLevel(level, name, when, alpha, sigma) {
    const share = alpha ** 2 / (alpha ** 2 + sigma ** 2);
    const words = [`${formatPercent(share)} image`, `${formatPercent(1 - share)} noise`];
    level.querySelector(".when").textContent = when;
    drawPart(level.querySelector("canvas"), PARTS[name][0], `${when}: ${words.join(", ")}`);
    level.querySelector(".shares i").style.width = `${100 * share}%`;
    [...level.querySelector(".share-words").children].forEach((part, i) => (part.textContent = words[i]));
  }

  function describeAmplified() {
    const { width, gain, alpha } = shown;
    const times = `multiplied by ${formatFactor(gain)}`;
    const blurred = `Each pixel of xₜ is averaged with its neighbors (a blur of ${width.toFixed(1)} pixels), which cancels the noise but not the image, and ${times}.`;
    const isNoise = gain * alpha < 0.999; // its full contrast would drown in what is left of the noise
    return `${width ? blurred : `xₜ is ${times}.`}${isNoise ? " Here, what is left is still more noise than image." : ""}`;
  }

  function hide() {
    panel.classList.add("outdated"); // what it shows keeps its place
    delete root.dataset.apart;
  }

  function highlight(name) {
    meaning.textContent = name ? PARTS[name][3] : "Point at a term to see what it is, and where else it is used.";
    for (const term of [...split, ...mix]) term.classList.toggle("lit", term.dataset.part === name);
  }

  for (const term of [...split, ...mix]) {
    const { part } = term.dataset;
    for (const type of ["pointerenter", "focusin"]) term.addEventListener(type, () => highlight(part));
    for (const type of ["pointerleave", "focusout"]) term.addEventListener(type, () => highlight(null));
  }
  highlight(null);
  amplify.addEventListener("click", () => {
    amplify.setAttribute("aria-pressed", String(!isAmplified()));
    if (root.dataset.apart) draw();
  });

  const [name, waiting, ask] = ["apart", "Taking the step apart…", server.apart];
  const show = (found) => {
    shown = found;
    draw();
  };
  createInspector({ root, state, isWalking, isAvailable, name, ask, waiting, show, hide });
}

// Three digits, but never 0 for what is not: 0.998, 0.059, 0.00003.
function formatFactor(value) {
  return value >= 9.95 ? value.toFixed(0) : value >= 0.0995 ? value.toFixed(value >= 2 ? 1 : 3) : String(Number(value.toPrecision(2)));
}

// Whole percents, but never 0 or 100 for what is not.
function formatPercent(share) {
  if (share > 0 && share < 0.005) return "< 1%";
  return share < 1 && share > 0.995 ? "> 99%" : `${Math.round(100 * share)}%`;
}
