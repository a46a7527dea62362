"""The Denoise tab: choose, press Generate, watch. First the components, in the order of the page; then all wiring."""

from __future__ import annotations

import asyncio
import html
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gradio as gr
import spaces

from dp.engine import Engine, Ticket, best_device, frame_of
from dp.samplers import MAX_SEED, SampleSettings
from dp.schedules import SCHEDULES
from dp.ui.player import Player, show

MAX_IMAGES, MAX_TIMESTEPS, MAX_TIME_DIFFERENCE_STEPS = 64, 1000, 3
FRAMES_PER_S = 15  # Gradio queues every yield and drops none, so the handler takes only what an eye can follow
TRAINED = "trained"  # the schedule choice that means the checkpoint's own
SAMPLERS = [("DDIM", "ddim"), ("DDPM", "ddpm"), ("DPM-Solver++(2M)", "dpmpp_2m")]


def build(engine: Engine, on_zero_gpu: bool) -> None:
    """Add the tab to the Blocks being built. on_zero_gpu: sample inside each call, where alone the GPU exists."""
    usable = [entry for entry in engine.checkpoints() if not entry.problem]
    default = usable[0] if usable else None

    with gr.Row(elem_classes="denoise"):
        with gr.Column(scale=3, min_width=320):
            player = Player(elem_id="player")
        with gr.Column(scale=2, min_width=300):
            generate = gr.Button("Generate", variant="primary", size="lg", elem_id="generate", interactive=bool(usable))
            stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop", visible=False)
            checkpoint = gr.Dropdown(
                [entry.name for entry in usable],
                value=default.name if default else None,
                label="Checkpoint",
                info="The trained model to sample from.",
            )
            about = gr.Markdown(describe(engine, default.name) if default else problems(engine), elem_id="about")
            batch_size = gr.Slider(
                1,
                MAX_IMAGES,
                16,
                step=1,
                label="Images",
                elem_id="images",
                info="More take longer; each has its own seed.",
            )
            timesteps = gr.Slider(
                1,
                MAX_TIMESTEPS,
                default.config["policy"].get("timesteps", 50) if default else 50,
                step=1,
                label="Timesteps",
                elem_id="timesteps",
                info="Network calls from noise to picture: fewer are faster and rougher.",
            )
            sampler = gr.Radio(
                SAMPLERS,
                value="ddim",
                label="Sampler",
                info="DDIM goes straight on; DDPM adds fresh noise at each step; 2M looks back a step and needs fewer.",
            )
            schedule = gr.Radio(
                schedule_choices(engine, default.name) if default else [],
                value=TRAINED,
                label="Noise schedule",
                info="Where the steps are spent on the way from noise to picture.",
            )
            time_difference_steps = gr.Slider(
                0,
                MAX_TIME_DIFFERENCE_STEPS,
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
        unchecked(control)

    # ------------------------------------------------------------------------
    # Wiring

    live: dict[str, Ticket] = {}  # the run of each page, for its Stop button

    def halt(request: gr.Request) -> None:
        if ticket := live.get(request.session_hash):
            ticket.cancel()

    async def from_engine(request: gr.Request, *controls: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Submit, then look at the newest frame some fifteen times a second."""
        name, settings = read(engine, *controls)
        halt(request)
        ticket = live[request.session_hash] = engine.submit(settings, name)
        try:
            yield {"state": "waiting"}, settings.seed, *buttons(running=True)
            seen = 0
            while ticket.is_live:
                frame = ticket.frame
                if frame and frame.index > seen:
                    seen = frame.index
                    yield show(frame, "running"), gr.skip(), gr.skip(), gr.skip()
                await asyncio.sleep(1 / FRAMES_PER_S)
            yield show(ticket.frame, ticket.state, ticket.error), settings.seed, *buttons(running=False)
        finally:  # may run on the event loop, so it only raises a flag
            ticket.cancel()
            if live.get(request.session_hash) is ticket:
                del live[request.session_hash]

    def inside_call(*controls: Any) -> Iterator[tuple[Any, ...]]:
        """The whole run in one call, for a GPU that exists only there; what is yielded is host data, and often."""
        name, settings = read(engine, *controls)
        yield {"state": "waiting"}, settings.seed, *buttons(running=True)
        shown_at = 0.0
        policy = engine.policy(name).to(best_device())
        for step in policy.run(policy.begin(settings)):
            if step.index == step.timesteps:
                yield show(frame_of(step), "done"), settings.seed, *buttons(running=False)
            elif time.monotonic() - shown_at >= 1 / FRAMES_PER_S:
                shown_at = time.monotonic()
                yield show(frame_of(step), "running"), gr.skip(), gr.skip(), gr.skip()

    run = generate.click(
        spaces.GPU(duration=seconds_needed)(inside_call) if on_zero_gpu else from_engine,
        [checkpoint, batch_size, timesteps, sampler, schedule, time_difference_steps, seed, random_seed],
        [player, seed, generate, stop],
        api_name="generate",
        show_progress="hidden",
        concurrency_limit=None,
    )
    if on_zero_gpu:  # nothing here can reach into the call, so Gradio closes it and the page is set right afterwards
        stopped = stop.click(None, cancels=[run], api_visibility="private")
        stopped.then(
            lambda: ({"state": "stopped"}, *buttons(running=False)),
            None,
            [player, generate, stop],
            api_visibility="private",
        )
    else:
        stop.click(halt, queue=False, api_visibility="private")
        gr.context.Context.root_block.unload(halt)

    def choose(name: str | None):
        return describe(engine, name), gr.update(choices=schedule_choices(engine, name), value=TRAINED)

    checkpoint.change(choose, checkpoint, [about, schedule], api_visibility="private", show_progress="hidden")


# ----------------------------------------------------------------------------
# Between the page and the library


def read(
    engine: Engine,
    checkpoint: str,
    images: int,
    timesteps: int,
    sampler: str,
    noise_schedule: str,
    time_difference_steps: float,
    seed: int | None,
    random_seed: bool,
) -> tuple[str, SampleSettings]:
    """The page's values -> checkpoint and settings, with the seed decided. A bad value is a gr.Error that names it."""
    try:
        images = within("Images", images, 1, MAX_IMAGES)
        timesteps = within("Timesteps", timesteps, 1, MAX_TIMESTEPS)
        steps = within("Time difference", time_difference_steps, 0, MAX_TIME_DIFFERENCE_STEPS, whole=False)
        if seed is None and not random_seed:
            raise ValueError("Seed is empty: type a whole number, or tick Random seed")
        seed = secrets.randbelow(MAX_SEED) if random_seed else within("Seed", seed, 0, MAX_SEED - 1)
        engine.policy(checkpoint)
        settings = SampleSettings(
            batch_size=images,
            timesteps=timesteps,
            sampler=sampler,
            noise_schedule=None if noise_schedule == TRAINED else noise_schedule,
            time_difference=min(steps / timesteps, 1.0),  # more than the whole run is the whole run
            seed=seed,
        )
    except ValueError as error:  # an error's text is shown as markup, and it may quote what a stranger sent
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
    return checkpoint, settings


def within(name: str, value: Any, low: int, high: int, whole: bool = True) -> Any:
    """`value` as a number from low to high, whole if it must be. Raises ValueError with its name."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, got {value!r:.80}")
    return int(value) if whole else float(value)


def unchecked(control: gr.components.Component) -> None:
    """Let the control's value through as it comes: `read` checks all of them, and its messages name the setting."""
    control.preprocess = lambda payload: payload


def buttons(running: bool) -> tuple[Any, Any]:
    """Generate turns into Stop and back."""
    return gr.update(visible=not running), gr.update(visible=running)


def seconds_needed(checkpoint: str, images: int, timesteps: int, *_: Any) -> int:
    """What a run may take on a lent GPU; asked of the visitor's quota before it starts."""
    return 10 + min(int(timesteps) * int(images), MAX_TIMESTEPS * MAX_IMAGES) // 2000


def schedule_choices(engine: Engine, checkpoint: str | None) -> list[tuple[str, str]]:
    """The trained schedule first, and said so; then the others with their default keywords."""
    policy = config_of(engine, checkpoint)["policy"]
    name, kwargs = policy.get("noise_schedule", "sigmoid"), policy.get("schedule_kwargs", {})
    return [(f"{name} (as trained)", TRAINED)] + [(other, other) for other in SCHEDULES if other != name or kwargs]


def describe(engine: Engine, checkpoint: str | None) -> str:
    """One line about a checkpoint, and what is wrong with folders that cannot be used."""
    config = config_of(engine, checkpoint)
    network, policy = config["network"], config["policy"]
    facts = [f"{network['image_size']}×{network['image_size']} pixels", f"predicts {policy.get('objective', 'v')}"]
    facts += [f"trained {config['step']:,} steps"] if "step" in config else []
    facts += [f"on {config['dataset']}"] if "dataset" in config else []
    return " · ".join(facts) + problems(engine)


def problems(engine: Engine) -> str:
    """A line for each folder among the checkpoints that cannot be used, and what to do where there is none at all."""
    entries = engine.checkpoints()
    lines = [f"\n\n⚠️ {html.escape(entry.problem)}" for entry in entries if entry.problem]
    if all(entry.problem for entry in entries):
        lines.insert(0, "No checkpoint yet: put a checkpoint folder into `checkpoints/` and reload the page.")
    return "".join(lines)


def config_of(engine: Engine, checkpoint: str | None) -> dict[str, Any]:
    """The checked config of a checkpoint that the page offered. A gr.Error if it has gone since."""
    config = next((entry.config for entry in engine.checkpoints() if entry.name == checkpoint), None)
    if config is None:
        raise gr.Error(
            f"{html.escape(str(checkpoint), quote=False)} cannot be read any more: reload the page",
            print_exception=False,
        )
    return config
