// Names and texts of other people become text nodes, never markup.
function createElement(tag, className, text) {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function createLink(url, text) {
  return Object.assign(document.createElement("a"), { href: url, textContent: text, target: "_blank", rel: "noopener" });
}
