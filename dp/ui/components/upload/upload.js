// Files on their way to the server: read in order and packed into messages, so that many small files are not many
// requests. While one message travels the next is packed, and waits for it: a slow line is never behind. Every message
// stays under 1 MB, the most that proxies accept by default (nginx: client_max_body_size).
const MESSAGE = 990_000; // bytes of JSON; Gradio adds a few around it
const PIECE = 700_000; // bytes of a file; base64 makes 4 of 3
const $ = (selector) => element.querySelector(selector);
const root = $(".intake");
let turn = 0; // of the transfer under way; an older one stops
let draft = props.value?.draft || null; // what is told of another one, that was left, does not count

const say = (words, share) => {
  $(".doing").textContent = words;
  if (share !== undefined) $(".bar i").style.transform = `scaleX(${share})`;
};

function complain(words) {
  root.dataset.state = "empty";
  $(".problem").textContent = words;
}

const base64 = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

// An empty file is a piece without data: it, too, is to be named in the report. The first piece has the file's name.
function* pieces(files) {
  for (const [number, { file, name }] of files.entries()) {
    let offset = 0;
    do {
      const about = offset ? { file: number, offset } : { file: number, offset, name: wellFormed(name) };
      const blob = file.slice(offset, offset + PIECE);
      const length = new TextEncoder().encode(JSON.stringify({ ...about, data: "" })).length + 4 * Math.ceil(blob.size / 3) + 1;
      yield { about, blob, length };
      offset += PIECE;
    } while (offset < file.size);
  }
}

// Gradio's client answers undefined where a request failed, and keeps the reason to itself: the browser knows the status.
async function delivered(call) {
  const statuses = [];
  const note = (entries) => statuses.push(...entries.filter(({ name }) => name.includes("component_server")).map((entry) => entry.responseStatus));
  const observer = new PerformanceObserver((list) => note(list.getEntries()));
  observer.observe({ type: "resource" });
  try {
    const answer = await call();
    if (answer) return answer;
    await new Promise((done) => setTimeout(done, 500)); // the browser tells it a moment later
    note(observer.takeRecords());
    return { problem: statuses.includes(413) ? TOO_LARGE : "the server did not respond. Try again." };
  } finally {
    observer.disconnect();
  }
}
const TOO_LARGE = "a proxy in front of this server rejected the upload (413: too large). Its limit must be at least 1 MB.";

const mega = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;

async function send(files) {
  const mine = ++turn;
  $(".problem").textContent = "";
  if (!files.length) return complain("There are no files in that. Choose a zip or tar archive, a folder or images.");
  const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
  root.dataset.state = "sending";
  draft = null;
  say("…", 0);
  try {
    const begun = await delivered(() => server.begin({ files: files.length, bytes }));
    if (mine !== turn) return;
    if (begun.problem) return complain(begun.problem);
    draft = begun.draft;
    let [sent, waiting, size, length, travelling] = [0, [], 0, 0, Promise.resolve()];
    const deliver = async (pieces, size) => {
      const answer = await delivered(() => server.receive({ draft: begun.draft, pieces }));
      if (answer.problem) throw new Error(answer.problem);
      sent += size;
      if (mine === turn) say(`Uploading: ${mega(sent)} of ${mega(bytes)}`, bytes ? sent / bytes : 1);
    };
    const flush = async () => {
      await travelling;
      travelling = deliver(waiting, size);
      travelling.catch(() => {}); // it is heard by whoever waits for it
      [waiting, size, length] = [[], 0, 0];
    };
    for (const piece of pieces(files)) {
      if (mine !== turn) return;
      if (length + piece.length > MESSAGE) await flush();
      waiting.push({ ...piece.about, data: await base64(piece.blob) });
      [size, length] = [size + piece.blob.size, length + piece.length];
    }
    await flush();
    await travelling;
    if (mine !== turn) return;
    root.dataset.state = "checking";
    say("Checking…", 0);
    trigger("brought", { draft, files: files.length });
  } catch (error) {
    if (mine === turn) complain(`The upload failed: ${error.message || error}`);
  }
}

// ---- what was chosen or dropped, with the names of its folders

// A name that Windows keeps may hold half of a surrogate pair, which no text can be encoded with.
const wellFormed = (name) => name.replace(/[\ud800-\udfff]/gu, "\ufffd");

const chosen = (list) => [...list].map((file) => ({ file, name: file.webkitRelativePath || file.name }));

async function below(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: entry.fullPath.replace(/^\//, "") }];
  }
  const [reader, found] = [entry.createReader(), []];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found;
    for (const one of some) found.push(...(await below(one)));
  }
}

const drop = $(".drop");
for (const input of root.querySelectorAll(".way input"))
  input.addEventListener("change", () => {
    send(chosen(input.files));
    input.value = "";
  });
for (const name of ["dragover", "dragleave", "drop"])
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
  });
drop.addEventListener("drop", async (event) => {
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  try {
    send((await Promise.all(entries.map(below))).flat());
  } catch (error) {
    complain(`The browser could not read that: ${error.message || error}`);
  }
});

function leave(event) {
  turn++;
  root.dataset.state = "empty";
  trigger(event, { draft });
  draft = null;
}
$(".cancel").addEventListener("click", () => leave("cancelled"));
$(".other").addEventListener("click", () => leave("emptied"));

// ---- what became of them

function show() {
  const value = props.value || { state: "empty" };
  if (value.state === "empty" && root.dataset.state === "sending") return; // the word on what was there before
  if (value.draft && value.draft !== draft) return;
  root.dataset.state = value.state;
  $(".problem").textContent = value.message || "";
  if (value.state === "checking") {
    const count = value.total ? `${value.done.toLocaleString("en")} of ${value.total.toLocaleString("en")}: ` : "";
    say(`Checking ${count}${value.name || "…"}`, value.total ? value.done / value.total : 0);
  }
  if (value.state !== "checked") return;
  $(".sentences").replaceChildren(...value.sentences.map((words) => Object.assign(document.createElement("li"), { textContent: words })));
  $(".sheet").src = value.sheet;
  $(".aside").hidden = !value.refused.length;
  const more = value.more ? `, and ${value.more.toLocaleString("en")} more` : "";
  $(".aside summary").textContent = `Skipped files, with reasons (${value.refused.length}${more})`;
  $(".aside tbody").replaceChildren(
    ...value.refused.map((pair) => {
      const row = document.createElement("tr");
      row.append(...pair.map((words) => Object.assign(document.createElement("td"), { textContent: words })));
      return row;
    }),
  );
}

watch("value", show);
show();
