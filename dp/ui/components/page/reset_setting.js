({ removed }, schedule, difference, eta, walk, start) => [
  // Put the default into the control of the setting that was removed.
  removed === "schedule" ? "trained" : schedule,
  removed === "difference" ? 0 : difference,
  removed === "eta" ? 0 : eta,
  removed === "walk" ? "" : walk,
  removed === "start" ? null : start,
]
