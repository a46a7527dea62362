// Train a run on a rented machine: choose one, see its price, start the job.
function createRentForm({ root, board, forms, server, poll }) {
  const TYPING_MS = 300; // the price is asked for after a pause in typing
  const renting = createForm({ root, board, forms, name: "rent" });
  const { field } = renting;
  let priceNumber = 0; // only the answer to the last question counts
  let typing = null;

  async function open() {
    const { runId } = board;
    renting.open();
    field("main").disabled = field("machine").disabled = true;
    field("machine").replaceChildren(new Option("loading the list of machines…"));
    field("price").textContent = "";
    field("needs-token").hidden = true;
    const offer = await answerOf(server.machines({}));
    if (runId !== board.runId || !renting.isOpen()) return;
    field("machine").replaceChildren(...(offer.machines || []).map(([flavor, text]) => new Option(text, flavor)));
    if (offer.problem) return renting.report(offer.problem, { isProblem: true });
    [field("machine").value, field("machine").disabled, field("timeout").value] = [offer.flavor, false, offer.timeout];
    field("needs-token").hidden = offer.login || Boolean(board.token);
    field("hint").textContent = offer.hint || "";
    field("machine").focus();
    await showPrice();
  }

  // The job cannot be started before the price of the current choice is known.
  async function showPrice() {
    const mine = ++priceNumber;
    field("main").disabled = true;
    const choice = { flavor: field("machine").value, timeout: field("timeout").value };
    const { words, problem } = await answerOf(server.price(choice));
    if (mine !== priceNumber) return;
    field("price").textContent = words || toSentence(problem);
    field("price").classList.toggle("bad", Boolean(problem));
    field("main").disabled = Boolean(problem);
  }

  field("machine").addEventListener("change", showPrice);
  field("timeout").addEventListener("input", () => {
    priceNumber++; // an answer for the previous time is ignored
    field("main").disabled = true;
    clearTimeout(typing);
    typing = setTimeout(showPrice, TYPING_MS);
  });

  renting.form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = renting.takeToken() || board.token;
    const request = { run: board.runId, flavor: field("machine").value, timeout: field("timeout").value, token };
    const noResponse = "The server did not respond. If the run is not queued in a minute, try again.";
    const { problem } = await renting.send(server.rent(request), "Uploading the run… Then the job starts.", noResponse);
    if (problem) return;
    board.token = token;
    if (request.run === board.runId) renting.close();
    poll();
  });

  return { open, close: renting.close };
}
