(isDrawn, checkpoint, className, guidance, images, timesteps, sampler, seed, random, schedule, difference, eta, walk, start, shown) => {
  // Compare the controls with the defaults, and with those of the run that is shown. isDrawn: whether it begins now.
  const chips = [
    schedule !== "trained" && ["schedule", `${schedule} schedule`],
    difference > 0 && ["difference", `time difference ${difference}`],
    sampler === "ddim" && eta > 0 && ["eta", `eta ${eta}`],
    walk?.trim() && ["walk", `walk to seed ${walk.trim()}`],
    start && ["start", `start image, strength ${start.strength}`],
  ].filter(Boolean);
  const values = {
    Checkpoint: checkpoint,
    Class: className,
    Guidance: className ? guidance : null,
    Images: images,
    Timesteps: timesteps,
    Sampler: sampler,
    Seed: random ? null : seed,
    "Noise schedule": schedule,
    "Time difference": difference,
    eta: sampler === "ddim" ? eta : null,
    "Walk to seed": walk?.trim() || "",
    "Start image": start ? JSON.stringify(start) : null,
  };
  try {
    if (isDrawn) sessionStorage.setItem("dp-random-seed", random); // for remembered_settings.js
  } catch {} // the browser blocks storage
  const drawn = isDrawn ? { ...values } : shown?.drawn;
  // A run with a random seed has put that into the control.
  if (drawn && drawn.Seed === null && !random) drawn.Seed = seed;
  const isChanged = (name) => values[name] !== drawn[name] && !(name === "Seed" && random);
  return { chips, changed: drawn ? Object.keys(values).filter(isChanged) : [], drawn };
}
