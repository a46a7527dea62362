// The settings that differ from their defaults, each as a chip that resets it, and those that changed since the run on
// the page.
const undrawn = element.querySelector(".undrawn");
const list = element.querySelector(".chips");

function show() {
  const { chips = [], changed = [] } = props.value || {};
  undrawn.textContent = changed.length ? `Changed since this run: ${changed.join(", ")}.` : "";
  list.replaceChildren(...chips.map(makeChip));
  const fold = document.querySelector(`#${props.fold} .label-wrap > span`);
  if (fold) fold.dataset.count = chips.length ? `${chips.length} changed` : "";
}

function makeChip([name, text]) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${text} ×` });
  button.setAttribute("aria-label", `Reset ${text}`);
  button.addEventListener("click", () => {
    props.value = { ...props.value, removed: name };
    trigger("remove");
  });
  const item = document.createElement("li");
  item.append(button);
  return item;
}

watch("value", show);
