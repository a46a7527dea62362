// The Save button and its menu of files, which the server makes.
function createFiles({ root, state, server, announce }) {
  const [button, list] = [root.querySelector(".save"), root.querySelector(".save-menu")];
  const menu = createMenu(button, list);
  let isSaving = false;

  async function save(kind) {
    isSaving = true;
    announce("saving…");
    const file = (await server.save({ run: state.run.id, kind, row: state.selected?.row ?? 0 })) || { problem: "the server did not respond" };
    isSaving = false;
    if (file.problem) return announce(`not saved: ${file.problem}`);
    const href = URL.createObjectURL(await (await fetch(file.content)).blob());
    Object.assign(document.createElement("a"), { href, download: file.name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    announce(`saved ${file.name}`);
  }

  button.addEventListener("click", () => menu.isOpen() && list.querySelector("button").focus());
  list.addEventListener("click", (event) => {
    const { kind } = event.target.dataset;
    if (!kind || isSaving) return;
    menu.close();
    save(kind);
  });
}
