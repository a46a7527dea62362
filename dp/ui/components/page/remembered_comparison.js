() => {
  // The id of the comparison that this browser tab was showing, "" if there is none or the browser blocks its storage.
  try {
    return [sessionStorage.getItem("dp-comparison") || ""];
  } catch {
    return [""];
  }
}
