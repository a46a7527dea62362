() => {
  // When the field of one of Gradio's sliders loses the focus, Gradio replaces a number beyond the range with the limit, and nothing with the
  // minimum. Say so.
  const noteOf = (block) => block.querySelector(":scope > .limit-note");

  function note({ target }) {
    if (!target.matches?.(".block:has([data-testid=block-info]):has(input[type=range]) input[type=number]")) return;
    const { value, min, max } = target;
    const limit = value === "" || Number(value) < Number(min) ? min : Number(value) > Number(max) ? max : null;
    if (limit === null) return;
    const block = target.closest(".block");
    const name = block.querySelector("[data-testid=block-info]").textContent.trim();
    const textContent = `${name} must be from ${min} to ${max}: ${value || "an empty field"} became ${limit}.`;
    noteOf(block)?.remove();
    block.append(Object.assign(document.createElement("p"), { className: "limit-note", role: "alert", textContent }));
  }

  document.addEventListener("blur", note, true); // before Gradio's own listener
  for (const type of ["input", "click"])
    document.addEventListener(type, ({ target }) => noteOf(target.closest(".block") || target)?.remove());
}
