// The runs, asked for once a second while they are looked at. What the page knows already is named in the question, so
// that an answer holds only what is new.
const $ = (selector) => element.querySelector(selector);
const root = $(".board");
const detail = $(".run");
const EVERY = 1000; // ms
const number = (value) => value.toLocaleString("en");
let shown = null; // the id of the run
let known = {}; // seen, known, offset, have: what is on the page already
let chosen = false; // by the visitor; until then the newest run is shown
let asking = 0;
let facts = null; // of the run, as last told

function choose(id) {
  if (id === shown) return;
  shown = id;
  known = { seen: known.seen };
  [facts, detail.hidden] = [null, true];
  $(".problem").textContent = "";
  ask(null);
  waiting = null;
  for (const form of Form.all) form.close();
  clearChart();
  clearSamples();
  for (const row of root.querySelectorAll(".runs button")) row.setAttribute("aria-current", row.dataset.id === id);
}

// ---- once a second

async function turn() {
  const mine = ++asking; // whatever was asked before is not heard any more
  let pause = EVERY;
  if (element.offsetParent && !document.hidden) {
    try {
      const answer = await server.look({ run: shown, ...known });
      if (mine !== asking) return;
      $(".away").hidden = true;
      const about = shown;
      if (answer.seen) known.seen = answer.seen;
      if (answer.runs) list(answer.runs);
      if (about !== shown) pause = 0;
      else if (!answer.gone && !answer.problem) pause = await take(answer);
    } catch {
      if (mine !== asking) return;
      $(".away").hidden = false;
      pause = 3 * EVERY;
    }
  }
  if (mine === asking) setTimeout(() => mine === asking && turn(), pause);
}

async function take(answer) {
  for (const key of ["known", "offset"]) if (key in answer) known[key] = answer[key];
  if (answer.facts) tell(answer.facts);
  plot(answer.records);
  if (answer.samples.length) known.have = answer.samples.at(-1)[0];
  await hang(answer.samples);
  return answer.more ? 0 : EVERY;
}

function list(runs) {
  follow(runs);
  root.dataset.runs = runs.length ? runs.length : "";
  $(".runs").replaceChildren(
    ...runs.map((run) => {
      const row = document.createElement("button");
      [row.type, row.dataset.id] = ["button", run.id];
      row.append(part("title", run.name), part("steps", run.total ? `${number(run.step)} / ${number(run.total)}` : ""), pill(run.state));
      row.addEventListener("click", () => {
        chosen = true;
        choose(run.id);
        turn();
      });
      row.setAttribute("aria-current", run.id === shown);
      const line = document.createElement("li");
      line.append(row);
      return line;
    }),
  );
  const ids = runs.map((run) => run.id);
  if (!ids.includes(shown) || (!chosen && ids[0] !== shown)) choose(ids.includes(shown) && chosen ? shown : ids[0] || null);
}

function part(name, words) {
  return Object.assign(document.createElement("span"), { className: name, textContent: words });
}

function pill(state) {
  const made = part("pill", state);
  made.dataset.state = state;
  return made;
}

// ---- the run that is shown

function tell(now) {
  facts = now;
  detail.hidden = false;
  detail.dataset.state = now.state;
  detail.dataset.step = now.step || 0;
  $(".run .name").textContent = now.name;
  $(".run header .pill").replaceWith(pill(now.state));
  $(".made").textContent = now.made;
  for (const button of root.querySelectorAll(".verbs button")) {
    const { in: states, of } = button.dataset;
    button.hidden = !states.split(" ").includes(now.state) || Boolean(of && !now[of]);
    if (["download", "publish"].includes(button.dataset.verb)) button.disabled = !now.checkpoints.length;
    else button.disabled = false;
  }
  $('[data-verb="resume"]').textContent = now.state === "new" ? "Start" : "Resume";
  const share = now.total ? (now.step || 0) / now.total : 0;
  $(".bar i").style.transform = `scaleX(${share})`;
  $(".bar").setAttribute("aria-valuenow", Math.round(share * 100));
  const said = now.total ? [`step ${number(now.step || 0)} of ${number(now.total)}`] : [];
  if (now.images_per_s && now.state === "running") said.push(`${number(Math.round(now.images_per_s))} images/s`);
  $(".step").textContent = said.join(" · ");
  $(".left").textContent = now.left == null ? "" : `about ${long(now.left)} left`;
  const asleep = now.job ? "No progress reported for a while." : "No progress reported for a while: the machine may be asleep or very busy.";
  const silent = now.answers ? "" : asleep;
  const words = now.job || now.was_job ? { ...WORDS, ...JOB_WORDS } : WORDS;
  const more = /^(training|(paused|stopped|finished) at step)/.test(now.message || "") ? "" : sentence(now.message || "");
  $(".message").textContent = [silent, more, words[now.state]].filter(Boolean).join(" ");
  $(".wrong").hidden = !("log" in now);
  if ("log" in now) {
    $(".wrong pre").textContent = now.log || "(the log is empty)";
    $(".wrong pre").scrollTop = 1e6; // what went wrong stands last
  }
  mark(now.checkpoints);
  tellJob(now);
}

const WORDS = {
  new: "Not started yet.",
  pausing: "Saving, then pausing…",
  stopping: "Saving, then stopping…",
  paused: "Everything is saved: Resume continues from here. Until then the device is free for Denoise.",
  lost: "The process ended unexpectedly (shutdown or out of memory?). Resume continues from the last complete checkpoint.",
  failed: "The saved checkpoints are intact: once the cause is fixed, Resume continues from the last one.",
};

// Where it is, or was last, on a rented machine; of one that is lost the message says all.
const JOB_WORDS = {
  pausing: "The job saves the next time it checks for commands, then ends. It costs nothing after that.",
  stopping: "The job saves the next time it checks for commands, then ends. It costs nothing after that.",
  paused: "Everything is saved, and nothing costs money now. Resume continues on this machine; Rent a machine continues in a new job.",
  lost: "",
};

const sentence = (words) => words && words[0].toUpperCase() + words.slice(1).replace(/\.?$/, ".");

function long(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// ---- what can be done with it

const act = (verb, more) => press(server.act({ run: shown, verb, ...more }));

async function press(call) {
  const about = shown;
  const buttons = [...root.querySelectorAll(".verbs button")];
  buttons.forEach((button) => (button.disabled = true)); // one at a time; the next facts say what is possible
  $(".problem").textContent = "";
  const answer = await answered(call);
  if (answer.problem && about === shown) $(".problem").textContent = answer.problem;
  delete known.known;
  await turn();
  if (away.includes(about)) exchange(); // it hands over what was asked
  return answer;
}

let agreed = null; // what is done after Yes

function ask(words, yes, no, then) {
  $(".asks").hidden = words === null;
  [$(".asks span").textContent, $(".asks .yes").textContent, $(".asks .no").textContent] = [words, yes, no];
  agreed = then;
}

function askDelete() {
  const left = facts.repo ? ` Its repository ${facts.repo} on Hugging Face stays: if you do not need it, delete that first.` : "";
  const words = `Delete ${facts.name} with its images, samples and checkpoints? This cannot be undone.${left}`;
  ask(words, "Delete it", "Keep it", () => {
    chosen = false;
    act("delete");
  });
}

function askEnd() {
  const words = "End the job immediately? Steps since the last saved checkpoint are lost, as is whatever it has not reported yet (about a minute). Pause and Stop save first.";
  ask(words, "End the job", "Let it continue", () => tellHub("end"));
}

function askForget() {
  const words = `Delete ${facts.repo} on Hugging Face? The run stays here, with everything that was downloaded.`;
  ask(words, "Delete it", "Keep it", () => tellHub("forget"));
}

for (const button of root.querySelectorAll(".verbs button"))
  button.addEventListener("click", () => {
    const verb = button.dataset.verb;
    if (verb === "rename") return rename();
    if (verb === "delete") return askDelete();
    if (verb === "publish") return openPublish();
    if (verb === "rent") return openRent();
    if (verb === "longer") return openLonger();
    if (verb === "end") return askEnd();
    if (verb === "duplicate") return trigger("duplicated", { run: shown });
    if (verb === "download") return trigger("downloaded", { run: shown, milestone: facts.checkpoints.at(-1) });
    act(verb);
  });
$(".remains button").addEventListener("click", askForget);
$(".asks .no").addEventListener("click", () => ask(null));
$(".asks .yes").addEventListener("click", () => {
  const then = agreed;
  ask(null);
  then();
});

function rename() {
  const box = $(".rename");
  [box.value, box.hidden, $(".run .name").hidden] = [facts.name, false, true];
  box.focus();
  box.select();
}
$(".rename").addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.target.blur();
  if (event.key === "Escape") {
    event.target.value = facts.name;
    event.target.blur();
  }
});
$(".rename").addEventListener("blur", ({ target }) => {
  [target.hidden, $(".run .name").hidden] = [true, false];
  const name = target.value.trim();
  if (name && name !== facts.name) act("rename", { name });
});

// ---- from the page: a run that was just started, a file to take away

watch("value", () => {
  const { show, rent, file } = props.value || {};
  if (show) {
    chosen = true;
    choose(show);
    delete known.seen;
    const looked = turn();
    if (rent) looked.then(openRent);
  }
  if (file) {
    const link = Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name });
    link.click();
  }
});
document.addEventListener("visibilitychange", () => document.hidden || (turn(), exchange()));
new ResizeObserver(() => drawChart()).observe(root);
setTimeout(turn);
