// A form of the board. forms: all of them, of which one is open at a time.
function createForm({ root, board, forms, name }) {
  const form = root.querySelector(`.form.${name}`);
  const field = (name) => form.querySelector(`.${name}`);

  function open() {
    for (const other of forms) other.close();
    report("");
    form.hidden = false;
  }

  function close() {
    form.hidden = true;
    takeToken();
  }

  // Return the typed token, and clear its field; "" if the form has none.
  function takeToken() {
    const input = field("token");
    if (!input) return "";
    const token = input.value;
    input.value = "";
    return token;
  }

  function report(text, { urls = [], isProblem = false } = {}) {
    const links = urls.flatMap((url, i) => [i ? " and " : "", createLink(url, url)]);
    field("outcome").replaceChildren(text, ...links);
    field("outcome").classList.toggle("bad", isProblem);
  }

  // Return the server's answer. A problem is reported, unless another run is shown by then.
  async function send(call, waitingText, noResponse) {
    const { runId } = board;
    field("main").disabled = true;
    report(waitingText);
    const answer = await answerOf(call, noResponse);
    field("main").disabled = false;
    if (answer.problem && runId === board.runId) {
      if (field("needs-token")) field("needs-token").hidden = false; // the login may lack the permission
      report(answer.problem, { isProblem: true });
    }
    return answer;
  }

  const created = { form, field, open, close, takeToken, report, send, isOpen: () => !form.hidden };
  field("cancel")?.addEventListener("click", close);
  forms.push(created);
  return created;
}
