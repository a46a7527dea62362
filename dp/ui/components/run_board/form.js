// What the board's forms have in common. A typed token is taken from its field before it goes anywhere.
const LOST = "The server did not respond. Try again.";

// The answer of a server function. Where the request fails, Gradio's client neither throws nor says why: it answers
// undefined.
const answered = async (call, lost = LOST) => (await call) ?? { problem: lost };

class Form {
  static all = [];

  constructor(name) {
    this.form = $(`.${name}`);
    this.field("cancel")?.addEventListener("click", () => this.close());
    Form.all.push(this);
  }

  field(name) {
    return this.form.querySelector(`.${name}`);
  }

  open() {
    for (const form of Form.all) form.close();
    this.said("");
    this.form.hidden = false;
  }

  close() {
    this.form.hidden = true;
    this.token();
  }

  token() {
    const field = this.field("token");
    if (!field) return ""; // a form that needs none
    const { value } = field;
    field.value = "";
    return value;
  }

  said(words, url, isWrong = false) {
    const link = url ? [linkTo(url, url)] : [];
    this.field("outcome").replaceChildren(words, ...link);
    this.field("outcome").classList.toggle("bad", isWrong);
  }

  // The server's answer, which is told unless another run is shown by then.
  async send(call, meanwhile, lost) {
    const about = shown;
    this.field("main").disabled = true;
    this.said(meanwhile);
    const answer = await answered(call, lost);
    this.field("main").disabled = false;
    if (answer.problem && about === shown) {
      if (this.field("asks-token")) this.field("asks-token").hidden = false; // it may be the login that does not do
      this.said(answer.problem, null, true);
    }
    return answer;
  }
}

function linkTo(url, words) {
  return Object.assign(document.createElement("a"), { href: url, textContent: words, target: "_blank", rel: "noopener" });
}
