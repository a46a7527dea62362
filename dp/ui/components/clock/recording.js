// Before the first comparison of a page: a recorded one, so that the page is not empty.
function createRecording({ root, server, variants, isIdle, showTable }) {
  const nextFrame = () => new Promise(requestAnimationFrame);

  async function begin() {
    const recording = await server.recording({}).catch(() => null);
    if (!recording) return;
    while (root.isConnected && variants().length < recording.variants.length) await nextFrame();
    if (!isIdle()) return;
    const players = variants();
    recording.variants.forEach(({ run, ...about }, i) => {
      const detail = { ...recording.runs[run], ...about };
      players[i].dispatchEvent(new CustomEvent("clock-record", { detail }));
    });
    const { table } = recording;
    showTable({ ...table, settings: `Recorded: ${table.settings}. Press Compare for your own.` });
  }

  return { begin };
}
