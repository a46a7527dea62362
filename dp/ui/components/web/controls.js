// The controls of the page: what the visitor chose, and what a link or a run puts into them.
function createControls({ form, about }) {
  const $ = (selector) => form.querySelector(selector);
  const NUMBERS = ["guidance", "images", "timesteps", "difference", "eta"];
  const { policy, classes } = about;

  function fill() {
    const select = $("#class");
    const each = classes.includes(EACH) ? [] : [EACH];
    if (classes.length) for (const name of ["any", ...classes, ...each]) select.append(Object.assign(new Option(name), { value: name === "any" ? ANY : name }));
    for (const part of form.querySelectorAll(".of-classes")) part.hidden = !classes.length;
    for (const name of samplersOf(about)) addRadio("sampler", name, SAMPLER_TITLES[name]);
    const keywords = Object.entries(policy.schedule_kwargs).map(([key, value]) => `${key} ${value}`.replace("-", "−"));
    addRadio("schedule", TRAINED, `As trained (${[policy.noise_schedule, ...keywords].join(", ")})`);
    for (const name of Object.keys(SCHEDULES)) if (name !== policy.noise_schedule || keywords.length) addRadio("schedule", name, name);
  }

  function addRadio(name, value, title) {
    const label = document.createElement("label");
    label.append(Object.assign(document.createElement("input"), { type: "radio", name, value }), title);
    $(`#${name}`).append(label);
  }

  function write(values) {
    for (const name of NUMBERS) $(`#${name}`).value = $(`#${name}-range`).value = values[name];
    [$("#class").value, $("#seed").value, $("#walk").value, $("#random").checked] = [values.label, values.seed, values.walk, values.random];
    for (const name of ["sampler", "schedule"]) $(`input[name=${name}][value="${values[name]}"]`).checked = true;
    update();
  }

  function read() {
    const numbers = Object.fromEntries(NUMBERS.map((name) => [name, $(`#${name}`).value]));
    const chosen = (name) => $(`input[name=${name}]:checked`).value;
    const [label, seed, walk, device] = ["#class", "#seed", "#walk", "#device"].map((selector) => $(selector).value);
    return { ...numbers, label, seed, walk, device, random: $("#random").checked, sampler: chosen("sampler"), schedule: chosen("schedule") };
  }

  function update() {
    const { sampler, label, schedule, difference, walk } = read();
    $(".of-ddim").hidden = sampler !== "ddim";
    $("#guidance").disabled = $("#guidance-range").disabled = label === ANY;
    const changed = [schedule !== TRAINED, Number(difference) > 0, walk.trim() !== "", sampler === "ddim" && Number($("#eta").value) > 0];
    const count = changed.filter(Boolean).length;
    $(".more summary").dataset.count = count ? `${count} changed` : "";
  }

  fill();
  for (const name of NUMBERS) {
    const [field, range] = [$(`#${name}`), $(`#${name}-range`)];
    [field.min, field.max] = [range.min, range.max] = LIMITS[name];
    range.addEventListener("input", () => (field.value = range.value));
    field.addEventListener("input", () => (range.value = field.value));
  }
  form.addEventListener("input", update);

  return { write, read, setSeed: (seed) => ($("#seed").value = seed) };
}
