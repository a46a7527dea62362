// More steps for a run that has finished.
const extending = new Form("longer");

function openLonger() {
  const steps = extending.field("steps");
  extending.open();
  [steps.min, steps.max, steps.value] = [facts.total + 1, props.max_steps, Math.min(2 * facts.total, props.max_steps)];
  steps.focus();
  steps.select();
}

extending.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const about = shown;
  const steps = Number(extending.field("steps").value);
  const call = server.act({ run: about, verb: "extend", steps });
  const answer = await extending.send(call, "Starting…", "The server did not respond. If the run has not resumed in a minute, try again.");
  if (!answer.problem && about === shown) extending.close();
  delete known.known;
  turn();
});
