// One run as the page knows it: its frames by rising step, and the facts that came with them.
function createRun(id) {
  const run = {
    id,
    frames: [],
    curve: [], // [step, log-SNR]
    others: {}, // by name, the curves of other schedules
    timesteps: 1,
    images: 1,
    until: Infinity, // the last step that is shown
    isWalk: false,
    isLocal: false, // computed by this browser
    settings: "", // in one line
    seed: null, // of the first image
    classes: [], // the name of each image's class, null for none
    first: null, // { index, at } of the first frame that arrived
    stepsPerSecond: null,
    isRecalled: false, // the server was asked for the frames that it has kept
    insertFrame,
    decimate,
    columns: () => Math.ceil(Math.sqrt(run.images)),
    measureSpeed,
  };

  // Return the frame's place, and whether it replaces the one of the same step.
  function insertFrame(frame) {
    const before = run.frames.findLastIndex((other) => other.index <= frame.index);
    const isUpdate = before >= 0 && run.frames[before].index === frame.index;
    if (isUpdate) Object.assign(run.frames[before], frame);
    else run.frames.splice(before + 1, 0, frame);
    return { place: isUpdate ? before : before + 1, isUpdate };
  }

  // Drop every other frame, but not `shown`, the first or the newest.
  function decimate(shown) {
    run.frames = run.frames.filter((frame, i, all) => i % 2 === 0 || frame === shown || i === all.length - 1);
  }

  function measureSpeed(index) {
    const seconds = (performance.now() - run.first?.at) / 1000;
    if (run.first && index > run.first.index && seconds > 0.2) run.stepsPerSecond = (index - run.first.index) / seconds;
  }

  return run;
}
