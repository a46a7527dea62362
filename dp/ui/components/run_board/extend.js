// More steps for a run that has finished.
function createExtendForm({ root, board, forms, server, maxSteps, reloadFacts }) {
  const extending = createForm({ root, board, forms, name: "extend" });
  const steps = extending.field("steps");

  function open() {
    const { total } = board.facts;
    extending.open();
    [steps.min, steps.max, steps.value] = [total + 1, maxSteps, Math.min(2 * total, maxSteps)];
    steps.focus();
    steps.select();
  }

  extending.form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { runId } = board;
    const call = server.command({ run: runId, verb: "extend", steps: Number(steps.value) });
    const noResponse = "The server did not respond. If the run has not resumed in a minute, try again.";
    const { problem } = await extending.send(call, "Starting…", noResponse);
    if (!problem && runId === board.runId) extending.close();
    reloadFacts();
  });

  return { open };
}
