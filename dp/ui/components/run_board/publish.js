// A milestone for the Hub.
const publishing = new Form("publish");

async function openPublish() {
  const [about, field] = [shown, (name) => publishing.field(name)];
  const told = await answered(server.offer({ run: about }));
  if (about !== shown) return;
  if (told.problem) return ($(".problem").textContent = told.problem);
  publishing.open();
  field("repo").value = told.owner ? `${told.owner}/${told.repo}` : "";
  field("repo").placeholder = `you/${told.repo}`;
  field("asks-token").hidden = told.login;
  field("hint").textContent = told.hint;
  field("milestone").replaceChildren(...[...facts.checkpoints].reverse().map((step) => new Option(`step ${number(step)}`, step)));
  field("repo").focus();
}

publishing.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = { run: shown, private: publishing.field("private").checked, token: publishing.token() };
  for (const name of ["repo", "milestone", "licence"]) asked[name] = publishing.field(name).value;
  const lost = "The server did not respond. Check on the Hub whether the model is there, or try again.";
  const { url } = await publishing.send(server.publish(asked), "Publishing… A large model takes a while.", lost);
  if (url && asked.run === shown) publishing.said("Published: ", url);
});
