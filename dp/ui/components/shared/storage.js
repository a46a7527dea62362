// Keep what a page that is reloaded needs to find its run again, and return whether that worked: storage may be blocked
// in a cross-site frame, and a Space is one.
function remember(key, value) {
  try {
    sessionStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

function remembered(key) {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}
