const formatNumber = (value) => value.toLocaleString("en");

function formatDuration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// With a capital and a full stop.
const toSentence = (text) => text && text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".");
