// The list of runs, and the run that is shown. While they are visible, the page asks the server once a second for
// changes; each request says what the page has already, so that an answer holds only what is new.
const POLL_MS = 1000;
const RETRY_MS = 3000;
const DENIED_MS = 60_000; // for a visitor who may not see the runs
const $ = (selector) => element.querySelector(selector);
const root = $(".board");
const details = $(".run");
const board = {
  runId: null, // of the run that is shown
  facts: null, // about that run, as last sent
  token: "", // as typed in this page; it is kept here and nowhere else
};
let recording = null; // a promise of a recorded run, once it was asked for
let have = {}; // what the page has: runs_mark, facts_mark, offset, last_sample
let isChosen = false; // by the visitor; until then the newest run is shown
let pollNumber = 0; // only the answer to the last request counts
let onConfirm = null;
let sending = null; // { runId, verb } of the command that the server has not answered yet

const common = { root, board, forms: [], server };
const chart = createLossChart({ root, board });
const samples = createSamples({ root, details, board, tabs: props.tabs, trigger });
const extendForm = createExtendForm({ ...common, maxSteps: props.max_steps, reloadFacts });
const publishForm = createPublishForm({ ...common, showProblem });
const rentForm = createRentForm({ ...common, poll });
const job = createJob({
  ...common,
  element,
  intervalMs: 1000 * props.exchange_s,
  closeRentForm: rentForm.close,
  sendCommand,
});

function showRun(id) {
  if (id === board.runId) return;
  [board.runId, board.facts, details.hidden] = [id, null, true];
  have = { runs_mark: have.runs_mark };
  showProblem("");
  closeConfirmation();
  job.reset();
  for (const form of common.forms) form.close();
  chart.clear();
  samples.clear();
  for (const row of root.querySelectorAll(".runs button")) row.setAttribute("aria-current", row.dataset.id === id);
}

// While there are no runs, a recorded one is shown, without any action.
async function showRecording() {
  if (!props.has_recording) return;
  const recorded = await (recording ||= server.recording({}).catch(() => null));
  if (!recorded || board.runId || board.facts) return;
  showFacts(recorded.facts);
  chart.add(recorded.records);
  await samples.add(recorded.samples);
}

// ---- polling

async function poll() {
  const mine = ++pollNumber;
  let pause = POLL_MS;
  if (element.offsetParent && !document.hidden) {
    try {
      const answer = await server.poll({ run: board.runId, ...have });
      if (mine !== pollNumber) return;
      $(".offline").hidden = true;
      pause = await receive(answer);
    } catch {
      if (mine !== pollNumber) return;
      $(".offline").hidden = false;
      pause = RETRY_MS;
    }
  }
  if (mine === pollNumber) setTimeout(() => mine === pollNumber && poll(), pause);
}

// Show what is new, and return the milliseconds until the next request.
async function receive(answer) {
  const { runId } = board;
  if (answer.runs_mark) have.runs_mark = answer.runs_mark;
  if (answer.runs) listRuns(answer.runs);
  root.classList.toggle("denied", Boolean(answer.problem));
  if (!board.runId) await showRecording();
  if (runId !== board.runId) return 0;
  if (answer.problem) return DENIED_MS;
  if (answer.is_gone) return POLL_MS;
  for (const key of ["facts_mark", "offset"]) if (key in answer) have[key] = answer[key];
  if (answer.facts) showFacts(answer.facts);
  chart.add(answer.records);
  if (answer.samples.length) have.last_sample = answer.samples.at(-1)[0];
  await samples.add(answer.samples);
  return answer.has_more ? 0 : POLL_MS;
}

function reloadFacts() {
  delete have.facts_mark;
  return poll();
}

// ---- the list

function listRuns(runs) {
  job.follow(runs);
  root.dataset.runs = runs.length ? runs.length : ""; // app.css depends on it
  $(".runs").replaceChildren(...runs.map(createRow));
  const ids = runs.map((run) => run.id);
  if (!isChosen || !ids.includes(board.runId)) showRun(ids[0] || null);
}

function createRow({ id, name, state, step, total }) {
  const [line, button] = [createElement("li", "", ""), createElement("button", "", "")];
  [button.type, button.dataset.id] = ["button", id];
  button.setAttribute("aria-current", id === board.runId);
  const progress = total ? `${formatNumber(step)} / ${formatNumber(total)}` : "";
  button.append(createElement("span", "title", name), createElement("span", "steps", progress), createPill(state));
  button.addEventListener("click", () => {
    isChosen = true;
    showRun(id);
    poll();
  });
  line.append(button);
  return line;
}

function createPill(state) {
  const pill = createElement("span", "pill", state);
  pill.dataset.state = state;
  return pill;
}

// ---- the run that is shown

const STATE_TEXTS = {
  recorded: "Recorded on another machine. Start a run, and it is shown here.",
  new: "Not started yet.",
  pausing: "Saving, then pausing…",
  stopping: "Saving, then stopping…",
  paused: "Everything is saved: Resume continues from here. Until then, the device is free for Denoise.",
  interrupted: "The process ended unexpectedly (shutdown or out of memory?). Resume continues from the last complete checkpoint.",
  failed: "The saved checkpoints are intact: once the cause is fixed, Resume continues from the last one.",
};

// For a run that is, or was last, on a rented machine. If it was interrupted, its message says why.
const JOB_STATE_TEXTS = {
  ...STATE_TEXTS,
  pausing: "The job saves the next time it checks for commands, then ends. It costs nothing after that.",
  stopping: "The job saves the next time it checks for commands, then ends. It costs nothing after that.",
  paused: "Everything is saved, and you are not being charged. Resume continues on this machine; Rent a machine continues in a new job.",
  interrupted: "",
};

// The labels of the requests that the training process carries out after its current step: before, and until then.
const LABELS = { save: ["Save now", "Saving…"], sample: ["Sample now", "Sampling…"] };

function showFacts(facts) {
  board.facts = facts;
  details.hidden = false;
  [details.dataset.state, details.dataset.step] = [facts.state, facts.step || 0];
  $(".run .name").textContent = facts.name;
  $(".run header .pill").replaceWith(createPill(facts.state));
  $(".description").textContent = facts.description;
  $('[data-verb="resume"]').textContent = facts.state === "new" ? "Start" : "Resume";
  showButtons(facts);
  showProgress(facts);
  $(".message").textContent = describe(facts);
  $(".log").hidden = !("log" in facts);
  if ("log" in facts) {
    $(".log pre").textContent = facts.log || "(the log is empty)";
    $(".log pre").scrollTop = 1e6; // the error comes last
  }
  samples.markCheckpoints(facts.checkpoints);
  job.show(facts);
}

// One command at a time; the next facts enable what is possible then.
function showButtons(facts) {
  const sent = sending?.runId === board.runId ? sending.verb : null;
  for (const button of root.querySelectorAll(".verbs button")) {
    const { verb, in: states, if: condition } = button.dataset;
    button.hidden = !states.split(" ").includes(facts.state) || Boolean(condition && !facts[condition]);
    const isRequested = verb === sent || facts.requested.includes(verb);
    const lacksCheckpoint = ["download", "publish"].includes(verb) && !facts.checkpoints.length;
    button.disabled = Boolean(sent) || isRequested || lacksCheckpoint;
    if (verb in LABELS) [button.textContent, button.ariaBusy] = [LABELS[verb][Number(isRequested)], isRequested];
  }
}

function showProgress({ state, step, total, images_per_s, seconds_left }) {
  const fraction = total ? (step || 0) / total : 0;
  $(".bar i").style.transform = `scaleX(${fraction})`;
  $(".bar").setAttribute("aria-valuenow", Math.round(fraction * 100));
  const parts = total ? [`step ${formatNumber(step || 0)} of ${formatNumber(total)}`] : [];
  if (images_per_s && state === "running") parts.push(`${formatNumber(Math.round(images_per_s))} images/s`);
  $(".step").textContent = parts.join(" · ");
  $(".time-left").textContent = seconds_left == null ? "" : `about ${formatDuration(seconds_left)} left`;
}

function describe(facts) {
  const isRemote = facts.job || facts.was_remote;
  const maybeAsleep = facts.job ? "." : ": the machine may be asleep or very busy.";
  const silence = facts.is_responding ? "" : `No progress reported for a while${maybeAsleep}`;
  const isRedundant = /^(training|(paused|stopped|finished) at step)/.test(facts.message || "");
  const message = isRedundant ? "" : toSentence(facts.message || "");
  return [silence, message, (isRemote ? JOB_STATE_TEXTS : STATE_TEXTS)[facts.state]].filter(Boolean).join(" ");
}

function showProblem(text) {
  $(".problem").textContent = text;
}

// ---- commands

const command = (verb, options) => sendCommand(verb, server.command({ run: board.runId, verb, ...options }));

async function sendCommand(verb, call) {
  const { runId } = board;
  sending = { runId, verb };
  showButtons(board.facts);
  showProblem("");
  const answer = await answerOf(call);
  sending = null;
  if (answer.problem && runId === board.runId) showProblem(answer.problem);
  await reloadFacts();
  if (job.isRemote(runId)) job.exchange(); // forwards the command
  return answer;
}

// The model of this run is tuned in a new run, which is then shown.
async function makeFast() {
  const { run } = await command("fast");
  if (!run) return;
  isChosen = true;
  showRun(run);
  poll();
}

function requestConfirmation(question, yes, no, action) {
  $(".confirmation").hidden = false;
  [$(".confirmation span").textContent, $(".confirmation .yes").textContent, $(".confirmation .no").textContent] = [question, yes, no];
  onConfirm = action;
}

function closeConfirmation() {
  $(".confirmation").hidden = true;
}

function confirmDelete() {
  const { name, repo } = board.facts;
  const remains = repo ? ` Its repository ${repo} on Hugging Face stays: if you do not need it, delete that first.` : "";
  const question = `Delete ${name} with its images, samples and checkpoints? This cannot be undone.${remains}`;
  requestConfirmation(question, "Delete it", "Keep it", () => {
    isChosen = false;
    command("delete");
  });
}

function confirmEnd() {
  const question =
    "End the job immediately? You lose the steps since the last saved checkpoint, and what the job has not reported yet (about a minute). Pause and Stop save first.";
  requestConfirmation(question, "End the job", "Let it continue", () => job.sendToHub("end"));
}

function confirmForget() {
  const question = `Delete ${board.facts.repo} on Hugging Face? The run stays here, with everything that was downloaded.`;
  requestConfirmation(question, "Delete it", "Keep it", () => job.sendToHub("forget"));
}

const verbs = {
  rename: startRenaming,
  delete: confirmDelete,
  publish: publishForm.open,
  rent: rentForm.open,
  extend: extendForm.open,
  fast: makeFast,
  end: confirmEnd,
  duplicate: () => trigger("duplicated", { run: board.runId }),
  download: () => trigger("downloaded", { run: board.runId, checkpoint: board.facts.checkpoints.at(-1) }),
};
for (const button of root.querySelectorAll(".verbs button")) {
  const { verb } = button.dataset;
  button.addEventListener("click", () => (verbs[verb] ? verbs[verb]() : command(verb)));
}
$(".job-repo button").addEventListener("click", confirmForget);
$(".confirmation .no").addEventListener("click", closeConfirmation);
$(".confirmation .yes").addEventListener("click", () => {
  closeConfirmation();
  onConfirm();
});

// ---- the name, edited in place

const nameField = $(".rename");

function startRenaming() {
  [nameField.value, nameField.hidden, $(".run .name").hidden] = [board.facts.name, false, true];
  nameField.focus();
  nameField.select();
}
nameField.addEventListener("keydown", (event) => {
  if (event.key === "Escape") nameField.value = board.facts.name;
  if (event.key === "Enter" || event.key === "Escape") nameField.blur();
});
nameField.addEventListener("blur", () => {
  [nameField.hidden, $(".run .name").hidden] = [true, false];
  const name = nameField.value.trim();
  if (name && name !== board.facts.name) command("rename", { name });
});

// ---- values from the server: a run that was just created, or a file to download

watch("value", () => {
  const { show, rent, file } = props.value || {};
  if (show) {
    isChosen = true;
    showRun(show);
    delete have.runs_mark;
    const polled = poll();
    if (rent) polled.then(rentForm.open);
  }
  if (file) Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  poll();
  job.exchange();
});
setTimeout(poll);
