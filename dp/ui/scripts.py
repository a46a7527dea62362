"""What runs in the browser beside the player: a line or two of JavaScript for an event."""

# The run that this browser tab watches; a reload keeps it, another tab does not see it. The player writes it.
REMEMBERED = """() => [sessionStorage.getItem("dp-run") || ""]"""

# Generate and Stop take each other's place: the keyboard's focus goes along instead of falling back to the page's top.
KEEP_FOCUS = """() => {
    const either = "#generate, #stop, #compare, #compare-stop";
    let held = null;
    document.addEventListener("focusin", ({ target }) => { held = target.matches(either) ? target : null; });
    document.addEventListener("pointerdown", ({ target }) => { held = target.closest(either); });
    new MutationObserver(() => {
        if (!held || held.checkVisibility()) return;
        const other = [...held.parentElement.querySelectorAll(either)].find((button) => button.checkVisibility());
        other?.focus({ preventScroll: true });
    }).observe(document.body, { subtree: true, attributeFilter: ["aria-busy"] });
}"""

# The page's values in the order of `controls.read` -> a link, on the clipboard; the button says so for a moment.
COPY_LINK = """(checkpoint, images, timesteps, sampler, schedule, difference, eta, seed, random, walk) => {
    const values = { checkpoint, images, timesteps, sampler, difference };
    if (schedule !== "trained") values.schedule = schedule;
    if (eta) values.eta = eta;
    if (!random) values.seed = seed;
    if (walk?.trim()) values.walk = walk.trim();
    const link = `${location.origin}${location.pathname}?${new URLSearchParams(values)}`;
    const button = document.querySelector("#link");
    const show = () => prompt("The link to these settings:", link);
    const copied = () => {
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy link"), 2000);
    };
    if (navigator.clipboard) navigator.clipboard.writeText(link).then(copied, show);
    else show();
}"""
