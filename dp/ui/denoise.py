"""The Denoise tab: choose, press Generate, watch. First the components, in the order of the page; then all wiring."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gradio as gr
import spaces

from dp.engine import Engine, Ticket, best_device, describe, frame_of
from dp.samplers import MAX_SEED
from dp.ui import controls
from dp.ui.player import Player, show

FRAMES_PER_S = 15  # Gradio queues every yield and drops none, so the handler takes only what an eye can follow
MAX_RUNS = 64  # at once, on all pages: each holds one of Gradio's places until it ends, even if nobody reads it

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

    live: defaultdict[str, set[Ticket]] = defaultdict(set)  # the runs of each page, for its Stop button and for its end

    def halt(request: gr.Request) -> None:
        for ticket in live.pop(request.session_hash, ()):
            ticket.cancel()

    async def from_engine(request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Submit, then look at the newest frame some fifteen times a second."""
        name, settings = controls.read(engine, *values)
        if sum(map(len, live.values())) >= MAX_RUNS:
            raise controls.complaint(f"{MAX_RUNS} runs are under way here, which is the limit: try again in a moment")
        ticket = engine.submit(settings, name)
        live[request.session_hash].add(ticket)
        seed = {"seed": settings.seed}
        try:
            yield {"state": "waiting"} | seed, settings.seed, *buttons(running=True)
            seen = 0
            while ticket.is_live:
                frame = ticket.frame
                if frame and frame.index > seen:
                    seen = frame.index
                    yield show(frame, "running"), gr.skip(), gr.skip(), gr.skip()
                await asyncio.sleep(1 / FRAMES_PER_S)
            yield show(ticket.frame, ticket.state, ticket.error) | seed, gr.skip(), *buttons(running=False)
            if ticket.state == "failed":
                raise controls.complaint(ticket.error)
        finally:  # may run on the event loop, so it only raises a flag
            ticket.cancel()
            live[request.session_hash].discard(ticket)
            if not live[request.session_hash]:
                del live[request.session_hash]

    def inside_call(*values: Any) -> Iterator[tuple[Any, ...]]:
        """The whole run in one call, for a GPU that exists only there; what is yielded is host data, and often."""
        name, settings = controls.read(engine, *values)
        seed = {"seed": settings.seed}
        yield {"state": "running"} | seed, settings.seed, *buttons(running=True)
        shown_at = 0.0
        try:
            policy = engine.policy(name).to(best_device())
            for step in policy.run(policy.begin(settings)):
                if step.index == step.timesteps:
                    yield show(frame_of(step), "done") | seed, gr.skip(), *buttons(running=False)
                elif time.monotonic() - shown_at >= 1 / FRAMES_PER_S:
                    shown_at = time.monotonic()
                    yield show(frame_of(step), "running"), gr.skip(), gr.skip(), gr.skip()
        except Exception as error:  # of any other error only the class's name leaves the call
            raise controls.complaint(describe(error)) from error

    swap = {"outputs": [player, generate, stop], "api_visibility": "private", "show_progress": "hidden"}
    if on_zero_gpu:  # the call says nothing before it has been lent a GPU
        waiting = {"state": "waiting", "message": "waiting for a GPU…"}
        generate.click(lambda: (waiting, *buttons(running=True)), queue=False, **swap)
    run = generate.click(
        spaces.GPU(duration=seconds_needed)(inside_call) if on_zero_gpu else from_engine,
        [checkpoint, batch_size, timesteps, sampler, schedule, time_difference_steps, seed, random_seed],
        [player, seed, generate, stop],
        api_name="generate",
        show_progress="hidden",
        concurrency_limit=None,
    )
    if on_zero_gpu:  # nothing here can reach into the call: Gradio closes it, and counts that as a failure, too
        stopped = stop.click(None, cancels=[run], api_visibility="private")
        stopped.then(lambda: ({"state": "stopped"}, *buttons(running=False)), **swap)
        run.failure(lambda: ({"state": "failed"}, *buttons(running=False)), **swap)
    else:
        stop.click(halt, queue=False, api_visibility="private")
        page.unload(halt)

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


def buttons(running: bool) -> tuple[Any, Any]:
    """Generate turns into Stop and back."""
    return gr.update(visible=not running), gr.update(visible=running)


def seconds_needed(checkpoint: object, images: object, timesteps: object, *_: object) -> int:
    """What a run may take on a lent GPU; asked of the visitor's quota before it starts."""
    try:
        rows = controls.within("Images", images, 1, controls.MAX_IMAGES)
        return 10 + rows * controls.within("Timesteps", timesteps, 1, controls.MAX_TIMESTEPS) // 2000
    except ValueError:
        return 10  # the run will say at once what is wrong
