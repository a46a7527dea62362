// A run on a rented machine: the form that starts it, and its news, for which somebody must ask the Hub with a token.
let token = ""; // as typed in this page's life; it is kept in this variable, and nowhere else
const renting = new Form("rent");
const signing = new Form("sign");
let away = []; // the ids of the runs that a Job trains
const news = new Map(); // id -> {problem, asks} of the last exchange, or {at}
let waiting = null; // what is done once a token has been typed
let [isExchanging, isAskedAgain, nextExchange] = [false, false, 0];

// ---- the form

async function openRent() {
  const [about, field] = [shown, (name) => renting.field(name)];
  renting.open();
  field("main").disabled = field("machine").disabled = true;
  field("machine").replaceChildren(new Option("loading the list of machines…"));
  field("price").textContent = "";
  field("asks-token").hidden = true;
  const told = await answered(server.machines({}));
  if (about !== shown || renting.form.hidden) return;
  field("machine").replaceChildren(...(told.machines || []).map(([flavor, words]) => new Option(words, flavor)));
  if (told.problem) return renting.said(told.problem, null, true);
  [field("machine").value, field("machine").disabled, field("timeout").value] = [told.flavor, false, told.timeout];
  field("asks-token").hidden = told.login || Boolean(token);
  field("hint").textContent = told.hint || "";
  field("machine").focus();
  await price();
}

// What it costs, for what is chosen now; until that is known it cannot be started.
let asked = 0;
let typing = 0;
async function price() {
  const mine = ++asked;
  const field = (name) => renting.field(name);
  field("main").disabled = true;
  const choice = { flavor: field("machine").value, timeout: field("timeout").value };
  const { words, problem } = await answered(server.price(choice));
  if (mine !== asked) return;
  field("price").textContent = words || sentence(problem);
  field("price").classList.toggle("bad", Boolean(problem));
  field("main").disabled = Boolean(problem);
}
renting.field("machine").addEventListener("change", price);
renting.field("timeout").addEventListener("input", () => {
  asked++; // what was asked for the time before is not heard any more
  renting.field("main").disabled = true;
  clearTimeout(typing);
  typing = setTimeout(price, 300);
});

renting.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const typed = renting.token() || token;
  const choice = { run: shown, flavor: renting.field("machine").value, timeout: renting.field("timeout").value };
  const lost = "The server did not respond. If the run is not queued in a minute, try again.";
  const answer = await renting.send(server.rent({ ...choice, token: typed }), "Uploading the run… Then the job starts.", lost);
  if (answer.problem) return;
  token = typed;
  if (choice.run === shown) renting.close();
  turn();
});

// ---- news: what is asked of the Job goes there, what has come of it comes here, and the board finds it

function follow(runs) {
  const before = away;
  away = runs.filter((run) => run.away).map((run) => run.id);
  if (away.some((id) => !before.includes(id))) exchange();
}

async function exchange() {
  isAskedAgain = isExchanging;
  if (isExchanging) return;
  isExchanging = true;
  clearTimeout(nextExchange);
  for (const id of element.offsetParent && !document.hidden ? [...away] : []) {
    if (news.get(id)?.asks) continue; // without another token it would come to the same
    const answer = await answered(server.exchange({ run: id, token }), "the server is not responding");
    news.set(id, answer.problem ? answer : { at: new Date() });
    if (id === shown && facts) tellJob(facts);
  }
  isExchanging = false;
  if (isAskedAgain) exchange();
  else if (away.length) nextExchange = setTimeout(exchange, 1000 * props.exchange_s);
}

function tellJob({ job, repo }) {
  [$(".job").hidden, $(".remains").hidden] = [!job, !repo];
  $(".remains span").textContent = repo ? `The files of its job are in ${repo}, a private repository on Hugging Face.` : "";
  const { problem, asks, at } = (job && news.get(shown)) || {};
  if (job) {
    renting.close(); // another page has started it
    const since = job.since ? ` since ${new Date(1000 * job.since).toLocaleString([], { dateStyle: "short", timeStyle: "short" })},` : "";
    const link = /^https?:/.test(job.url) ? [". See ", linkTo(job.url, "the job on Hugging Face")] : [];
    $(".job .where").replaceChildren(`On a rented machine (${job.flavor})${since} with a time limit of ${job.limit}`, ...link, ".");
    $(".job .heard").textContent = at ? `Last checked at ${at.toLocaleTimeString()}. The job reports about once a minute.` : "";
    $(".job .trouble").textContent = problem && !asks ? `${sentence(problem)} Retrying; the job continues.` : "";
  }
  if (asks && signing.form.hidden) askToken("Enter your token to see the progress", problem);
  if (!asks && !waiting) signing.close();
}

function askToken(why, problem) {
  signing.open();
  signing.field("why").textContent = why;
  signing.field("cancel").hidden = !waiting; // without news there is nothing to close it for
  signing.said(token ? sentence(problem) : "", null, true);
}

signing.field("cancel").addEventListener("click", () => (waiting = null));
signing.form.addEventListener("submit", (event) => {
  event.preventDefault();
  token = signing.token();
  const next = waiting || exchange;
  for (const [id, { asks }] of news) if (asks) news.delete(id);
  waiting = null;
  signing.close();
  next();
});

// ---- with the Job, or with what it has left

async function tellHub(what) {
  const about = shown;
  const answer = await press(server[what]({ run: about, token }));
  if (!answer.asks || about !== shown) return;
  $(".problem").textContent = "";
  waiting = () => tellHub(what);
  askToken("Enter your token for this", answer.problem);
}
