() => {
  // The id of the run that this browser tab watches, "" if there is none. The player writes it into its element and
  // into the tab's storage, which alone survives a reload. Reading the storage throws if the browser blocks it.
  const shown = document.querySelector("#player .player")?.dataset.run;
  try {
    return [shown || sessionStorage.getItem("dp-run") || ""];
  } catch {
    return [shown || ""];
  }
}
