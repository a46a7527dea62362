// Runs on rented machines. The server exchanges files and commands with the Hub only when a page asks it to, since the
// token may be known to the page alone.
function createJob({ root, element, board, forms, server, intervalMs, closeRentForm, sendCommand }) {
  const $ = (selector) => root.querySelector(selector);
  const signIn = createForm({ root, board, forms, name: "sign-in" });
  const exchanges = new Map(); // run -> { problem, asks } or { at } of the last exchange; asks: for another token
  let remoteRuns = []; // ids
  let onToken = null; // the action to repeat when a token has been typed
  let [isExchanging, isRequestedAgain, timer] = [false, false, null];

  // The runs of the list; exchange at once if there is a new one.
  function follow(runs) {
    const before = remoteRuns;
    remoteRuns = runs.filter((run) => run.is_remote).map((run) => run.id);
    if (remoteRuns.some((id) => !before.includes(id))) exchange();
  }

  async function exchange() {
    isRequestedAgain = isExchanging;
    if (isExchanging) return;
    isExchanging = true;
    clearTimeout(timer);
    for (const id of element.offsetParent && !document.hidden ? [...remoteRuns] : []) {
      if (exchanges.get(id)?.asks) continue; // with the same token, the answer would be the same
      const answer = await answerOf(server.exchange({ run: id, token: board.token }), "the server is not responding");
      exchanges.set(id, answer.problem ? answer : { at: new Date() });
      if (id === board.runId && board.facts) show(board.facts);
    }
    isExchanging = false;
    if (isRequestedAgain) exchange();
    else if (remoteRuns.length) timer = setTimeout(exchange, intervalMs);
  }

  function show({ job, repo }) {
    [$(".job").hidden, $(".job-repo").hidden] = [!job, !repo];
    $(".job-repo span").textContent = repo ? `The files of its job are in ${repo}, a private repository on Hugging Face.` : "";
    const { problem, asks, at } = (job && exchanges.get(board.runId)) || {};
    if (job) {
      closeRentForm(); // another page may have started the job
      describe(job);
      $(".last-check").textContent = at ? `Last checked at ${at.toLocaleTimeString()}. The job reports about once a minute.` : "";
      $(".job-problem").textContent = problem && !asks ? `${toSentence(problem)} Retrying; the job continues.` : "";
    }
    if (asks && !signIn.isOpen()) askForToken("Enter your token to see the progress", problem);
    if (!asks && !onToken) signIn.close();
  }

  function describe({ flavor, since, limit, url }) {
    const format = { dateStyle: "short", timeStyle: "short" };
    const from = since ? ` since ${new Date(1000 * since).toLocaleString([], format)},` : "";
    const link = /^https?:/.test(url) ? [". See ", createLink(url, "the job on Hugging Face")] : [];
    $(".job-description").replaceChildren(`On a rented machine (${flavor})${from} with a time limit of ${limit}`, ...link, ".");
  }

  function askForToken(purpose, problem) {
    signIn.open();
    signIn.field("purpose").textContent = purpose;
    signIn.field("cancel").hidden = !onToken; // the form stays while there is no progress to show
    signIn.report(board.token ? toSentence(problem) : "", { isProblem: true });
  }

  // Call a server function that acts on the Hub, and ask for a token if it needs another one.
  async function sendToHub(name) {
    const { runId, token } = board;
    const answer = await sendCommand(name, server[name]({ run: runId, token }));
    if (!answer.asks || runId !== board.runId) return;
    $(".problem").textContent = "";
    onToken = () => sendToHub(name);
    askForToken("Enter your token to continue", answer.problem);
  }

  signIn.field("cancel").addEventListener("click", () => (onToken = null));
  signIn.form.addEventListener("submit", (event) => {
    event.preventDefault();
    board.token = signIn.takeToken();
    const next = onToken || exchange;
    for (const [id, { asks }] of exchanges) if (asks) exchanges.delete(id);
    onToken = null;
    signIn.close();
    next();
  });

  return { follow, exchange, show, sendToHub, isRemote: (id) => remoteRuns.includes(id), reset: () => (onToken = null) };
}
