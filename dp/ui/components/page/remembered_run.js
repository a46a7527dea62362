() => {
  // The id of the run that this browser tab watches, "" if there is none. The player writes it into its element and
  // into the tab's storage, which alone survives a reload. Reading the storage throws if the browser blocks it. A page
  // opened by a link draws that link's run instead, unless it was reloaded.
  const shown = document.querySelector("#player .player")?.dataset.run;
  const isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const query = new URLSearchParams(location.search);
  if (!shown && !isReload && LINK_NAMES.some((name) => query.has(name))) return [""];
  try {
    return [shown || sessionStorage.getItem("dp-run") || ""];
  } catch {
    return [shown || ""];
  }
}
