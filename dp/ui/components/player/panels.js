// What looks into the run that is shown: at one step of one image, and at the whole run.
function createPanels({ root, state, server, props, panes, selection, isWalking, seek, goTo, pause }) {
  const inspected = { root, state, server, isWalking };
  const hasRun = () => Boolean(state.run.id) && !state.run.isLocal; // which the server does not know
  const canReplay = () => props.can_replay && hasRun();
  const select = selection.showImage;
  createMini({ root, panes });
  createAttention({ ...inspected, panes, isAvailable: canReplay });
  createGuidance({ ...inspected, isAvailable: (row) => canReplay() && Boolean(state.run.classes[row]) });
  createApart({ ...inspected, isAvailable: canReplay });
  createEndings({ ...inspected, isAvailable: canReplay, goTo });
  createBest({ ...inspected, isAvailable: canReplay });
  createCandidates({ ...inspected, isAvailable: canReplay, goTo, select });
  createMap({ ...inspected, panes, select, isAvailable: hasRun });
  createMoment({ root, state, selection, seek, pause });
}
