() => {
  // Where the pointer rests on a technical word, explain it: in the labels of controls, and in the texts below.
  const TERMS = DEFINITIONS; // by the word in lower case
  const TEXTS = ["abbr", "[data-testid=block-info]", ".noise-level", ".start-level", ".clock .progress", ".clock label"];
  const UNDEFINED = TEXTS.map((selector) => `${selector}:not([title])`).join();
  let isDue = false;

  function define() {
    isDue = false;
    for (const text of document.querySelectorAll(UNDEFINED)) {
      const words = text.textContent.toLowerCase().replaceAll("₀", "0").split(/[^a-z0-9-]+/);
      const term = words.flatMap((word) => [word, word.replace(/s$/, "")]).find((word) => Object.hasOwn(TERMS, word));
      if (term) text.title = TERMS[term];
    }
  }

  function defineSoon() {
    if (!isDue) requestAnimationFrame(define);
    isDue = true;
  }

  new MutationObserver(defineSoon).observe(document.body, { subtree: true, childList: true });
  defineSoon();
}
