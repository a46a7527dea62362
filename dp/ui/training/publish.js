// A milestone for the Hub. A typed token is sent once, and is gone from its field before the answer comes.
const form = $(".publish");
const field = (name) => form.querySelector(`.${name}`);

function closeForm() {
  form.hidden = true;
  field("token").value = "";
}

async function openForm() {
  const about = shown;
  const told = await server.offer({ run: about }).catch(() => ({ problem: "The server did not answer; try again." }));
  if (about !== shown) return;
  if (told.problem) return ($(".problem").textContent = told.problem);
  field("repo").value = told.owner ? `${told.owner}/${told.repo}` : "";
  field("repo").placeholder = `you/${told.repo}`;
  field("asks-token").hidden = told.login;
  field("milestone").replaceChildren(...[...facts.checkpoints].reverse().map((step) => new Option(`step ${number(step)}`, step)));
  said("");
  form.hidden = false;
  field("repo").focus();
}

function said(words, url, isWrong = false) {
  const link = url ? [Object.assign(document.createElement("a"), { href: url, textContent: url, target: "_blank", rel: "noopener" })] : [];
  field("outcome").replaceChildren(words, ...link);
  field("outcome").classList.toggle("bad", isWrong);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = { run: shown, private: field("private").checked };
  for (const name of ["repo", "milestone", "licence", "token"]) asked[name] = field(name).value;
  field("token").value = "";
  field("main").disabled = true;
  said("Publishing… A large network takes a while.");
  const { url, problem } = await server.publish(asked).catch(() => ({ problem: "The server did not answer: look on the Hub whether it is there, or try again." }));
  field("main").disabled = false;
  if (asked.run !== shown) return;
  if (problem) field("asks-token").hidden = false; // it may be the login that does not do
  said(problem || "It is there: ", url, Boolean(problem));
});
field("cancel").addEventListener("click", closeForm);
