// The settings of one side. samplers: [title, name] of each.
const NOISY = ["noisy", "sigmoid, mostly noise", { schedule: "sigmoid", scheduleKwargs: { start: 0, end: 3, tau: 0.3 } }];
const SCHEDULE_CHOICES = [...Object.keys(SCHEDULES).map((name) => [name, name, { schedule: name }]), NOISY];

function createVariant({ form, samplers, onChange }) {
  const controls = Object.fromEntries([...form.querySelectorAll("[name]")].map((control) => [control.name, control]));
  let settings = { ...USUAL };

  function show() {
    for (const [name, control] of Object.entries(controls)) control.value = settings[name];
    form.querySelector(".eta").classList.toggle("unused", settings.sampler !== "ddim");
  }

  function set(changes) {
    settings = { ...USUAL, ...changes };
    form.querySelector(".problem").textContent = "";
    show();
  }

  // A number that is out of range or not complete is not used, and does not stay.
  function change({ target }) {
    const isWhole = target.step === "1"; // the other steps are only those of the arrows
    const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = target.validity;
    const isValid = target.value !== "" && !(badInput || rangeUnderflow || rangeOverflow || (isWhole && stepMismatch));
    const [name, rule] = [target.closest("label").textContent.trim(), isWhole ? "a whole number" : "a number"];
    form.querySelector(".problem").textContent = isValid ? "" : `${name} must be ${rule} from ${target.min} to ${target.max}.`;
    if (!isValid) return;
    settings[target.name] = target.type === "number" ? Number(target.value) : target.value;
    form.querySelector(".eta").classList.toggle("unused", settings.sampler !== "ddim");
    onChange();
  }

  // The argument of `makePlan`.
  function toPlan() {
    const { sampler, schedule, timesteps, difference, eta } = settings;
    const [, , chosen] = SCHEDULE_CHOICES.find(([name]) => name === schedule);
    return { ...chosen, sampler, timesteps, timeDifference: Math.min(difference / timesteps, 1), eta: sampler === "ddim" ? eta : 0 };
  }

  // The sampler and the steps, and what else is unusual or, as for the schedule, another on the other side.
  function describe(other) {
    const { sampler, schedule, timesteps, difference, eta } = settings;
    const parts = [samplers.find(([, name]) => name === sampler)[0], `${timesteps} ${timesteps === 1 ? "step" : "steps"}`];
    if (schedule !== USUAL.schedule || other.schedule() !== schedule) parts.push(SCHEDULE_CHOICES.find(([name]) => name === schedule)[1]);
    if (difference) parts.push(`time difference ${difference}`);
    if (sampler === "ddim" && eta) parts.push(`eta ${eta}`);
    return parts.join(" · ");
  }

  controls.sampler.append(...samplers.map(([title, name]) => new Option(title, name)));
  controls.schedule.append(...SCHEDULE_CHOICES.map(([name, title]) => new Option(title, name)));
  form.addEventListener("input", change);
  form.addEventListener("focusout", show);
  show();

  return { set, toPlan, describe, schedule: () => settings.schedule };
}
