(_run, random) => {
  // The id of the run that this browser tab watches, and whether Random seed was selected when it was started.
  const [run] = REMEMBERED_RUN();
  try {
    return [run, (sessionStorage.getItem("dp-random-seed") ?? String(random)) === "true"];
  } catch {
    return [run, random];
  }
}
