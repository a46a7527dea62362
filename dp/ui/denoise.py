"""The Denoise tab: choose, press Generate, watch. First the components, in the order of the page; then all wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import gradio as gr
import spaces

from dp.engine import Engine
from dp.samplers import MAX_SEED
from dp.ui import controls
from dp.ui.player import Player, show
from dp.ui.watching import Viewers, in_call

# The run that this browser tab watches; a reload keeps it, another tab does not see it. The player writes it.
REMEMBERED = """() => [sessionStorage.getItem("dp-run") || ""]"""

# Generate and Stop take each other's place: the keyboard's focus goes along instead of falling back to the page's top.
KEEP_FOCUS = """() => {
    const either = "#generate, #stop";
    let held = false;
    document.addEventListener("focusin", (event) => { held = event.target.matches(either); });
    document.addEventListener("pointerdown", (event) => { held = event.target.closest(either) !== null; });
    new MutationObserver(() => {
        const lost = held && document.activeElement === document.body;
        if (lost) document.querySelector(either)?.focus({ preventScroll: true });
    }).observe(document.body, { childList: true, subtree: true });
}"""


def build(page: gr.Blocks, engine: Engine, on_zero_gpu: bool) -> None:
    """Add the tab to the page being built. on_zero_gpu: sample inside each call, where alone the GPU exists."""
    names = controls.usable_names(engine)
    default = names[0] if names else None

    with gr.Row(elem_classes="denoise"):
        with gr.Column(scale=3, min_width=320):
            player = Player(elem_id="player")
        with gr.Column(scale=2, min_width=300):
            generate = gr.Button("Generate", variant="primary", size="lg", elem_id="generate", interactive=bool(names))
            stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop", visible=False)
            checkpoint = gr.Dropdown(
                names,
                value=default,
                label="Checkpoint",
                info="The trained model to sample from.",
            )
            about = gr.Markdown(controls.describe(engine, default), elem_id="about")
            batch_size = gr.Slider(
                1,
                controls.MAX_IMAGES,
                16,
                step=1,
                label="Images",
                elem_id="images",
                info="More take longer; each has its own seed.",
            )
            timesteps = gr.Slider(
                1,
                controls.MAX_TIMESTEPS,
                50,
                step=1,
                label="Timesteps",
                elem_id="timesteps",
                info="Network calls: fewer are faster and rougher.",
            )
            sampler = gr.Radio(
                controls.SAMPLERS,
                value="ddim",
                label="Sampler",
                info="DDIM goes straight on; DDPM adds fresh noise at each step; 2M looks back a step and needs fewer.",
            )
            schedule = gr.Radio(
                controls.schedule_choices(engine, default) if default else [],
                value=controls.TRAINED,
                label="Noise schedule",
                info="Where the steps are spent on the way from noise to picture.",
            )
            time_difference_steps = gr.Slider(
                0,
                controls.MAX_TIME_DIFFERENCE_STEPS,
                0,
                step=0.5,
                label="Time difference, in steps",
                info="Each step goes this much further than the next one starts from: 0 is the plain sampler.",
            )
            with gr.Row(equal_height=True):
                seed = gr.Number(
                    0,
                    precision=0,
                    minimum=0,
                    maximum=MAX_SEED - 1,
                    label="Seed",
                    elem_id="seed",
                    info="Same seed, same pictures.",
                    min_width=120,
                )
                random_seed = gr.Checkbox(True, label="Random seed", info="A new one each time.", min_width=120)
    for control in (checkpoint, batch_size, timesteps, sampler, schedule, time_difference_steps, seed):
        controls.unchecked(control)

    # ------------------------------------------------------------------------
    # Wiring

    viewers = Viewers(engine, page)

    async def from_engine(request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        name, settings = controls.read(engine, *values)
        async with aclosing(viewers.start(request.session_hash, name, settings)) as shown:
            async for value in shown:
                yield on_page(value)
        if value["state"] == "failed":
            raise controls.complaint(value["message"])

    async def again(request: gr.Request, run: str) -> AsyncIterator[tuple[Any, ...]]:
        """Take up the run that this tab was watching before it was reloaded or lost its connection."""
        values = viewers.again(request.session_hash, str(run))
        if values is None:
            yield on_page(None)
            return
        async with aclosing(values) as shown:
            async for value in shown:
                yield on_page(value)

    def inside_call(*values: Any) -> Iterator[tuple[Any, ...]]:
        name, settings = controls.read(engine, *values)
        seed = {"seed": settings.seed}
        yield on_page({"state": "waiting"} | seed)
        for frame, is_last in in_call(engine, name, settings):
            yield on_page(show(frame, "done") | seed if is_last else show(frame, "running"))

    def halt(request: gr.Request) -> None:
        viewers.stop(request.session_hash)

    def leave(request: gr.Request) -> None:
        viewers.leave(request.session_hash)

    watching = {"outputs": [player, seed, generate, stop], "concurrency_limit": None}
    watching |= {"api_visibility": "private", "show_progress": "hidden"}
    swap = {"outputs": [player, generate, stop], "api_visibility": "private", "show_progress": "hidden"}
    if on_zero_gpu:  # the call says nothing before it has been lent a GPU
        waiting = {"state": "waiting", "message": "waiting for a GPU…"}
        generate.click(lambda: (waiting, *buttons(running=True)), queue=False, **swap)
    run = generate.click(
        spaces.GPU(duration=controls.seconds_needed)(inside_call) if on_zero_gpu else from_engine,
        [checkpoint, batch_size, timesteps, sampler, schedule, time_difference_steps, seed, random_seed],
        **watching,
    )
    if on_zero_gpu:  # nothing here can reach into the call: Gradio closes it, and counts that as a failure, too
        stopped = stop.click(None, cancels=[run], api_visibility="private")
        stopped.then(lambda: ({"state": "stopped"}, *buttons(running=False)), **swap)
        run.failure(lambda: ({"state": "failed"}, *buttons(running=False)), **swap)
    else:
        stop.click(halt, queue=False, api_visibility="private")
        page.unload(leave)
        remembered = gr.Textbox(visible=False)
        page.load(again, remembered, js=REMEMBERED, **watching)
        player.lost(again, remembered, js=REMEMBERED, **watching)

    def choose(name: str | None) -> tuple[Any, ...]:
        choices = controls.schedule_choices(engine, name) if name else []
        return (
            controls.describe(engine, name),
            gr.update(choices=choices, value=controls.TRAINED),
            gr.update(interactive=bool(name)),
        )

    def look_again() -> tuple[Any, ...]:
        names = controls.usable_names(engine)
        return gr.update(choices=names, value=names[0] if names else None), *choose(names[0] if names else None)

    shown = [about, schedule, generate]
    checkpoint.input(choose, checkpoint, shown, api_visibility="private", show_progress="hidden")
    page.load(js=KEEP_FOCUS, api_visibility="private")
    page.load(look_again, None, [checkpoint, *shown], api_visibility="private", show_progress="hidden")


def on_page(value: dict[str, Any] | None) -> tuple[Any, ...]:
    """A value of the player, with what the seed and the buttons make of it."""
    if value is None:
        return (gr.skip(),) * 4
    begins, goes_on = value["state"] == "waiting" and "seed" in value, value["state"] in ("waiting", "running")
    pair = buttons(running=True) if begins else (gr.skip(),) * 2 if goes_on else buttons(running=False)
    return value, value["seed"] if begins else gr.skip(), *pair


def buttons(running: bool) -> tuple[Any, Any]:
    """Generate turns into Stop and back."""
    return gr.update(visible=not running), gr.update(visible=running)
