"""Short scripts that run in the browser on an event, outside the components."""

# The run that this browser tab watches, which the player writes into its element and into the tab's storage: after a
# reload there is only the latter, and reading it throws where the browser blocks storage. Another tab does not see it.
REMEMBERED = """() => {
    const shown = document.querySelector("#player .player")?.dataset.run;
    try { return [shown || sessionStorage.getItem("dp-run") || ""]; } catch { return [shown || ""]; }
}"""

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

# Load settings sends only the start of a large PNG: its settings stand before its pixels, and many proxies accept no
# more than 1 MB.
SEND_LESS = """() => document.addEventListener("change", ({ target }) => {
    const MOST = 500_000; // bytes
    const [file] = target.matches('input[type=file][accept=".png"]') ? target.files : [];
    if (!file || file.size <= MOST) return;
    const sent = new DataTransfer();
    sent.items.add(new File([file.slice(0, MOST)], file.name, { type: file.type }));
    target.files = sent.files;
}, true)"""

# Shows the link where the browser does not let the page write to the clipboard. (In a cross-site frame it blocks
# `prompt`, too.)
LINK_FIELD = (
    "<label hidden>The browser does not allow this page to copy. Copy the link by hand: "
    '<input readonly spellcheck="false" style="width: 100%" /></label>'
)

# The page's values in the order of `page_values.read` -> a link, on the clipboard; the button says so for a moment.
COPY_LINK = """async (checkpoint, images, timesteps, sampler, schedule, difference, eta, seed, random, walk) => {
    const values = { checkpoint, images, timesteps, sampler, difference };
    if (schedule !== "trained") values.schedule = schedule;
    if (eta) values.eta = eta;
    if (!random) values.seed = seed;
    if (walk?.trim()) values.walk = walk.trim();
    const link = `${location.origin}${location.pathname}?${new URLSearchParams(values)}`;
    const button = document.querySelector("#link");
    const label = document.querySelector("#link-field label");
    const field = label.querySelector("input");
    // Chromium prints an error where the frame's permissions forbid it. Elsewhere the attempt fails, and says nothing.
    const may = document.featurePolicy?.allowsFeature("clipboard-write") ?? true;
    try {
        if (!may) throw new Error("the frame has no permission");
        await navigator.clipboard.writeText(link);
        label.hidden = true;
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy link"), 2000);
    } catch { // there is no clipboard, or it is not for this page
        label.hidden = false;
        field.value = link;
        field.focus();
        field.select();
    }
}"""
