// The Save button and its menu of files, which the server makes.
function createFiles({ root, state, server, announce }) {
  const [button, menu] = [root.querySelector(".save"), root.querySelector(".save-menu")];
  let isSaving = false;

  function close() {
    menu.hidden = true;
    button.focus();
  }

  async function save(kind) {
    isSaving = true;
    announce("saving…");
    const file = (await server.save({ run: state.run.id, kind })) || { problem: "the server did not respond" };
    isSaving = false;
    if (file.problem) return announce(`not saved: ${file.problem}`);
    const href = URL.createObjectURL(await (await fetch(file.content)).blob());
    Object.assign(document.createElement("a"), { href, download: file.name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    announce(`saved ${file.name}`);
  }

  button.addEventListener("click", () => {
    menu.hidden = !menu.hidden;
    if (!menu.hidden) menu.querySelector("button").focus();
  });
  menu.addEventListener("click", (event) => {
    const { kind } = event.target.dataset;
    if (!kind || isSaving) return;
    close();
    save(kind);
  });

  return { isOpen: () => !menu.hidden, close };
}
