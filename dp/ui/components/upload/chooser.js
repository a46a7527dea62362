// Choose or drop files, or folders with all their files. onFiles gets a list of { file, name }, where the name is the
// path within the folder.
function createChooser({ root, onFiles, onProblem }) {
  for (const input of root.querySelectorAll(".way input"))
    input.addEventListener("change", () => {
      onFiles([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
      input.value = "";
    });
  createDropZone(root.querySelector(".drop"), async ({ items }) => {
    const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    try {
      onFiles((await Promise.all(entries.map(listFiles))).flat());
    } catch (error) {
      onProblem(`The browser could not read that: ${error.message || error}`);
    }
  });

  async function listFiles(entry) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      return [{ file, name: entry.fullPath.replace(/^\//, "") }];
    }
    const [reader, files] = [entry.createReader(), []];
    for (;;) {
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // about 100 at a time
      if (!entries.length) return files;
      for (const child of entries) files.push(...(await listFiles(child)));
    }
  }
}
