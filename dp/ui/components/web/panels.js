// What follows the run in an exported page: only what needs nobody else's computer.
function createPanels({ root, panes }) {
  createMini({ root, panes });
}

// A run lives in the page alone, so there is nothing to find again after a reload.
const remember = () => true;
