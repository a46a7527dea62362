// Upload images to train on, and show the server's report about them.
const $ = (selector) => element.querySelector(selector);
const root = $(".upload");
let transferNumber = 0; // of the transfer under way; older ones stop
let uploadId = props.value?.upload || null; // values about other uploads are ignored: the visitor has left those

const transfer = createTransfer({ server });
createChooser({ root, onFiles: uploadFiles, onProblem: showProblem });

const formatMegabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;

function showProgress(text, fraction) {
  $(".doing").textContent = text;
  $(".bar i").style.transform = `scaleX(${fraction})`;
}

function showProblem(text) {
  root.dataset.state = "empty";
  $(".problem").textContent = text;
}

function uploadFiles(files) {
  if (!files.length) return showProblem("There are no files in it. Choose a zip or tar archive, a folder or images.");
  const total = files.reduce((sum, { file }) => sum + file.size, 0);
  const onProgress = (sent) =>
    showProgress(`Uploading: ${formatMegabytes(sent)} of ${formatMegabytes(total)}`, total ? sent / total : 1);
  return upload(
    files.length,
    () => server.begin({ files: files.length, bytes: total }),
    (isCurrent) => transfer.send(files, uploadId, { isCurrent, onProgress }),
  );
}

// Let the server begin an upload of so many files, fill it, and have it checked.
async function upload(count, begin, fill) {
  const mine = ++transferNumber;
  const isCurrent = () => mine === transferNumber;
  $(".problem").textContent = "";
  root.dataset.state = "sending";
  uploadId = null;
  showProgress("…", 0);
  try {
    const begun = await transfer.call(begin);
    if (!isCurrent()) return;
    if (begun.problem) return showProblem(begun.problem);
    uploadId = begun.upload;
    await fill(isCurrent);
    if (!isCurrent()) return;
    root.dataset.state = "checking";
    showProgress("Checking…", 0);
    trigger("uploaded", { upload: uploadId, files: count });
  } catch (error) {
    if (isCurrent()) showProblem(`The upload failed: ${error.message || error}`);
  }
}

$(".samples").hidden = !props.samples.length;
for (const name of props.samples) {
  const button = createElement("button", "sample", name);
  button.type = "button";
  button.addEventListener("click", () => upload(1, () => server.borrow({ name }), () => {}));
  $(".samples").append(button);
}

function discard(event) {
  transferNumber++;
  root.dataset.state = "empty";
  trigger(event, { upload: uploadId });
  uploadId = null;
}
$(".cancel").addEventListener("click", () => discard("canceled"));
$(".other").addEventListener("click", () => discard("removed"));

// ---- the server's report

function show() {
  const value = props.value || { state: "empty" };
  if (value.state === "empty" && root.dataset.state === "sending") return; // about the images before
  if (value.upload && value.upload !== uploadId) return;
  root.dataset.state = value.state;
  $(".problem").textContent = value.message || "";
  if (value.state === "checking") showChecking(value);
  if (value.state === "checked") showReport(value);
}

function showChecking({ done, total, name }) {
  const count = total ? `${formatNumber(done)} of ${formatNumber(total)}: ` : "";
  showProgress(`Checking ${count}${name || "…"}`, total ? done / total : 0);
}

function showReport({ summary, sheet, rejected, more }) {
  $(".summary").replaceChildren(...summary.map((text) => createElement("li", "", text)));
  $(".sheet").src = sheet;
  $(".rejected").hidden = !rejected.length;
  const others = more ? `, and ${formatNumber(more)} more` : "";
  $(".rejected summary").textContent = `Skipped files, with reasons (${rejected.length}${others})`;
  $(".rejected tbody").replaceChildren(
    ...rejected.map((texts) => {
      const row = createElement("tr", "", "");
      row.append(...texts.map((text) => createElement("td", "", text)));
      return row;
    }),
  );
}

watch("value", show);
show();
