// Publish a checkpoint on the Hub.
function createPublishForm({ root, board, forms, server, showProblem }) {
  const publishing = createForm({ root, board, forms, name: "publish" });
  const { field } = publishing;

  async function open() {
    const { runId } = board;
    const offer = await answerOf(server.offer({ run: runId }));
    if (runId !== board.runId) return;
    if (offer.problem) return showProblem(offer.problem);
    publishing.open();
    field("repo").value = offer.owner ? `${offer.owner}/${offer.repo}` : "";
    field("repo").placeholder = `you/${offer.repo}`;
    field("needs-token").hidden = offer.login;
    field("hint").textContent = offer.hint;
    const steps = [...board.facts.checkpoints].reverse();
    field("checkpoint").replaceChildren(...steps.map((step) => new Option(`step ${formatNumber(step)}`, step)));
    field("repo").focus();
  }

  publishing.form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const request = {
      run: board.runId,
      repo: field("repo").value,
      checkpoint: field("checkpoint").value,
      license: field("license").value,
      private: field("private").checked,
      page: field("page").checked,
      token: publishing.takeToken(),
    };
    const noResponse = "The server did not respond. Check on the Hub whether the model is there, or try again.";
    const waiting = request.page ? "Publishing… The page takes a minute." : "Publishing… A large model takes a while.";
    const { url, page, problem } = await publishing.send(server.publish(request), waiting, noResponse);
    if (url && !problem && request.run === board.runId) publishing.report("Published: ", { urls: [url, page].filter(Boolean) });
  });

  return { open };
}
