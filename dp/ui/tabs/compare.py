"""The Compare tab: one thing varied, everything else the same, all from the same noise and on one clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from dp.ui import words
from dp.ui.components.player.player import Clock, Player
from dp.ui.sampling import page_values
from dp.ui.sampling.comparison import Tally, Values, asked, one_by_one, side_by_side
from dp.ui.sampling.panel import Panel
from dp.ui.sampling.variants import MOST, PLACES, SHORT_RUNS, make_arms
from dp.ui.streaming import Viewers
from dp.ui.zero_gpu import Lend, NotLent, waiting_for

AXES = [
    ("Sampler", "sampler"),
    ("Timesteps", "timesteps"),
    ("Noise schedule", "schedule"),
    ("Time difference", "difference"),
    ("eta", "eta"),
    ("Checkpoint", "checkpoint"),
    ("Step k of a long run, and a k-step run", SHORT_RUNS),
]
NUMBERS = {  # of an axis whose values are numbers: those offered, and those chosen at first
    "timesteps": (["2", "3", "5", "10", "20", "50", "100", "250"], ["3", "5", "10", "20", "50", "100"]),
    "difference": (["0", "0.5", "1", "1.5", "2", "3"], ["0", "1", "2"]),
    "eta": (["0", "0.25", "0.5", "0.75", "1"], ["0", "0.5", "1"]),
    SHORT_RUNS: (["2", "3", "5", "10", "20", "30"], ["5", "10", "20"]),
}
IMAGES = 4
LONG_RUN = 40  # timesteps that the pairs begin with
VALUES_INFO = "What to compare: up to {}."
OVER = {"is_over": True}  # the clock's value that leaves its table as it is


def build(page: gr.Blocks, viewers: Viewers, lend: Lend | None) -> Panel:
    """Add the tab to the page being built; returns its controls. lend: as in `denoise.build`."""
    engine = viewers.engine
    names = page_values.usable_names(engine)

    with gr.Row(elem_classes="denoise"):
        with gr.Column(scale=3, min_width=320):
            gr.Markdown(words.COMPARE_HINT, elem_id="compare-hint", elem_classes="about")
            with gr.Row(elem_classes="arms"):
                players = [
                    Player(engine, is_arm=True, keeps_runs=lend is None, min_width=80, padding=False)
                    for _ in range(MOST)
                ]
            clock = Clock(elem_id="clock")
        with gr.Column(scale=2, min_width=300):
            start = gr.Button("Compare", variant="primary", size="lg", elem_id="compare", interactive=bool(names))
            stop = gr.Button("Stop", variant="stop", size="lg", elem_id="compare-stop")
            axis = gr.Dropdown(
                AXES, value="sampler", label="What differs", elem_id="axis", info="All the rest is the same for all."
            )
            chosen = gr.Dropdown(
                page_values.SAMPLERS,
                value=[value for _, value in page_values.SAMPLERS[:3]],
                multiselect=True,
                max_choices=MOST,
                label="Values",
                elem_id="values",
                info=VALUES_INFO.format(MOST),
            )
            panel = Panel(engine, prefix="compare-", images=IMAGES)
    sampler, eta = panel.settings[PLACES["sampler"]], panel.settings[PLACES["eta"]]
    sampler.visible, eta.visible = False, True  # as `choose_axis` would have it
    words.explain(words.COMPARE)

    # ------------------------------------------------------------------------
    # Wiring

    page_values.unchecked(axis)
    page_values.unchecked(chosen)

    async def at_once(request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        arms = make_arms(engine, *values)
        tally = Tally(arms)
        shown, table = first_values(tally)
        yield *shown.values(), table, arms[0].settings.seed
        async with aclosing(side_by_side(viewers, request.session_hash, arms, tally)) as values_of_arms:
            async for news in values_of_arms:
                shown |= news
                table = table_on(news, tally, table)
                yield *shown.values(), table, gr.skip()
        yield *shown.values(), tally.table(is_over=True), gr.skip()

    def after_each_other(*values: Any) -> Iterator[tuple[Any, ...]]:
        arms = make_arms(engine, *values)
        tally = Tally(arms)
        shown, table = first_values(tally, waiting_for(asked(arms)))
        yield *shown.values(), table, arms[0].settings.seed
        try:
            for news in one_by_one(lend, arms, tally):
                shown |= news
                table = table_on(news, tally, table)
                yield *shown.values(), table, gr.skip()
        except NotLent as why_not:
            shown |= failed_values(tally, why_not.sentence)
            yield *shown.values(), tally.table(is_over=True), gr.skip()
            raise
        yield *shown.values(), tally.table(is_over=True), gr.skip()

    async def halt(request: gr.Request) -> None:
        viewers.stop(request.session_hash, tab="compare")

    def choose_axis(axis: str, name: str | None, sampler: str) -> tuple[Any, ...]:
        """What there is to choose from; the controls that no longer count go."""
        is_shown = [i != PLACES.get(axis) for i in range(len(panel.settings))]
        is_shown[PLACES["sampler"]] = axis not in ("sampler", "eta")  # only DDIM has an eta
        is_shown[PLACES["eta"]] = axis == "sampler" or (axis != "eta" and sampler == "ddim")
        shown = [gr.update(visible=visible) for visible in is_shown]
        if axis == SHORT_RUNS:
            shown[PLACES["timesteps"]] = gr.update(visible=True, value=LONG_RUN)
        return values_of(axis, name), *shown

    def values_of(axis: str, name: str | None) -> Any:
        if axis in NUMBERS:
            choices, value = NUMBERS[axis]
        elif axis == "sampler":
            choices, value = page_values.SAMPLERS, [value for _, value in page_values.SAMPLERS[:3]]
        elif axis == "schedule":
            choices = page_values.schedule_choices(engine, name) if name else []
            value = [choice for _, choice in choices]
        else:
            choices = page_values.usable_names(engine)
            value = choices[:MOST]
        most = MOST // 2 if axis == SHORT_RUNS else MOST
        return gr.update(
            choices=choices,
            value=value,
            max_choices=most,
            allow_custom_value=axis in NUMBERS,
            info=VALUES_INFO.format(most) + (" You may type others." if axis in NUMBERS else ""),
        )

    def schedules_of(axis: str, name: str | None) -> Any:
        return values_of(axis, name) if axis == "schedule" else gr.skip()

    def checkpoints_of(axis: str) -> Any:
        """More may have come since the axis was chosen."""
        return gr.update(choices=page_values.usable_names(engine)) if axis == "checkpoint" else gr.skip()

    def look_again() -> tuple[Any, ...]:
        return gr.update(interactive=bool(page_values.usable_names(engine))), *panel.look_again()

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    outputs = [*players, clock, panel.seed]
    handler = after_each_other if lend else at_once
    run = start.click(handler, [axis, chosen, *panel.settings], outputs, concurrency_limit=None, **quiet)
    if lend:  # as in `denoise`
        stopped = stop.click(None, cancels=[run], api_visibility="private")
        stopped.then(lambda: (*({"state": "stopped"},) * MOST, OVER), None, [*players, clock], **quiet)
    else:
        stop.click(halt, queue=False, api_visibility="private")
    run.failure(lambda: OVER, None, clock, **quiet)
    axis.input(choose_axis, [axis, panel.checkpoint, sampler], [chosen, *panel.settings], **quiet)
    chosen.focus(checkpoints_of, axis, chosen, **quiet)
    panel.checkpoint.input(schedules_of, [axis, panel.checkpoint], chosen, **quiet)
    page.load(look_again, None, [start, *panel.everything], **quiet)
    return panel


# All arms have a value each time: Gradio's client writes what is new into those that still wait to be shown, and where
# one is left out it writes just that over the last one.


def first_values(tally: Tally, message: str | None = None) -> tuple[Values, dict[str, Any]]:
    """Of the players where a comparison begins, and the table: every arm has its name and waits, and the players
    without an arm go. message: for the first arm's line, while it waits.
    """
    values: Values = {i: {"state": "idle"} for i in range(MOST)}
    values |= {i: {"state": "waiting"} | tally.about(i) for i in range(len(tally.arms))}
    values[0]["message"] = message
    return values, tally.table()


def table_on(news: Values, tally: Tally, table: dict[str, Any]) -> dict[str, Any]:
    """A new one where an arm has ended."""
    is_end = any(value["state"] not in ("waiting", "running") for value in news.values())
    return tally.table() if is_end else table


def failed_values(tally: Tally, message: str) -> Values:
    """Where the GPU was not lent, or not for long enough: the first arm that has not ended says why."""
    missing = [i for i in range(len(tally.arms)) if i not in tally.ended]
    said = {i: message if i == missing[0] else "not run to its end" for i in missing}
    return {i: {"state": "failed", "message": text} | tally.about(i) for i, text in said.items()}
