async (checkpoint, className, guidance, images, timesteps, sampler, seed, _random, schedule, difference, eta, walk, start) => {
  // Copy a link with the page's values, which come in the order of `page_values.read`.
  const values = { checkpoint, images, timesteps, sampler, difference, seed };
  if (className) Object.assign(values, { class: className, guidance });
  if (schedule !== "trained") values.schedule = schedule;
  if (eta) values.eta = eta;
  if (walk?.trim()) values.walk = walk.trim();
  const link = `${location.origin}${location.pathname}?${new URLSearchParams(values)}`;
  const button = document.querySelector("#link");
  const label = document.querySelector("#link-field label");
  try {
    // Without the permission of its frame, the attempt fails silently in some browsers and prints an error in Chromium.
    const isAllowed = document.featurePolicy?.allowsFeature("clipboard-write") ?? true;
    if (!isAllowed) throw new Error("the frame has no permission");
    await navigator.clipboard.writeText(link);
    label.hidden = true;
    button.textContent = start ? "Copied, without the start image" : "Copied";
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  } catch {
    // There is no clipboard, or this page may not use it: show the link for copying by hand.
    const field = label.querySelector("input");
    label.hidden = false;
    field.value = link;
    field.focus();
    field.select();
  }
}
