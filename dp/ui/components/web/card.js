// The model card in words. Its blocks are { kind, text }, or { kind: "table", rows } with the
// texts of the cells, and they become text nodes.
function showCard(section, blocks) {
  const TAGS = { heading: "h2", paragraph: "p", item: "p" };

  function makeTable(rows) {
    const table = document.createElement("table");
    for (const cells of rows) table.insertRow().append(...cells.map((text) => createElement("td", "", text)));
    return table;
  }

  section.replaceChildren(...blocks.map(({ kind, text, rows }) => (kind === "table" ? makeTable(rows) : createElement(TAGS[kind], kind, text))));
}
