"""The Compare tab: vary one setting, start all runs from the same noise and play them on one clock. The components in
page order, then one function per concern that wires them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from dp.serving.engine import Engine
from dp.ui import scripts, words
from dp.ui.components.clock.clock import Clock
from dp.ui.components.player.player import Player
from dp.ui.sampling import page_values
from dp.ui.sampling.comparison import Comparison, ComparisonResult, Comparisons, Values, side_by_side
from dp.ui.sampling.panel import QUIET, Given, Opening, Panel, Updates, build_panel
from dp.ui.sampling.variants import (
    CLASS_AXES,
    FAST,
    MAX_VARIANTS,
    PARAMETERS,
    SHORT_RUNS,
    Variant,
    make_variants,
    most_values,
)
from dp.ui.streaming import Sessions

AXES = [
    ("Sampler", "sampler"),
    ("Timesteps", "timesteps"),
    ("Noise schedule", "schedule"),
    ("Time difference", "difference"),
    ("eta", "eta"),
    ("Checkpoint", "checkpoint"),
    ("Class: the same noise, every class", "class"),
    ("Guidance", "guidance"),
    ("Step k of a long run vs. a whole run of k steps", SHORT_RUNS),
    ("Few steps of a fast model vs. its original", FAST),
]
NUMBERS = {  # an axis with numeric values -> the values on offer, and those selected at first
    "timesteps": (["2", "3", "5", "10", "20", "50", "100", "250"], ["3", "5", "10", "20", "50", "100"]),
    "difference": (["0", "0.5", "1", "1.5", "2", "3"], ["0", "1", "2"]),
    "eta": (["0", "0.25", "0.5", "0.75", "1"], ["0", "0.5", "1"]),
    "guidance": (["0", "1", "1.5", "2", "3", "5", "10"], ["1", "2", "3", "5"]),
    SHORT_RUNS: (["2", "3", "5", "10", "20", "30"], ["5", "10", "20"]),
    FAST: (["1", "2", "3", "4", "8"], ["1", "2", "4"]),
}
IMAGES = 4
SAMPLERS = [value for _, value in page_values.SAMPLERS[:3]]  # selected at first: one row of players
RECORDING = "comparison.json"  # in the folder of a bundled model
LONG_RUN = 40  # timesteps selected at first for SHORT_RUNS
VALUES_INFO = "Choose up to {} to compare."
OVER = {"is_over": True}  # a value of the clock that keeps its table


@dataclass(frozen=True)
class Tab:
    """The tab's components."""

    players: list[Player]
    clock: Clock
    start: gr.Button
    stop: gr.Button
    axis: gr.Dropdown
    chosen: gr.Dropdown
    panel: Panel

    @property
    def inputs(self) -> set[Component]:
        """Return the inputs of a comparison."""
        return {self.axis, self.chosen, *self.panel.controls}

    @property
    def outputs(self) -> list[Component]:
        """Return the components that a comparison updates."""
        return [*self.players, self.clock, self.panel.controls.seed]

    @property
    def opening(self) -> Opening:
        """Return how to open a checkpoint in this tab."""
        outputs = [self.axis, self.chosen, self.panel.about, *self.panel.controls]
        return Opening(self.select, {self.panel.controls.sampler}, outputs)

    def select(self, name: str, given: Given) -> Updates:
        """Compare a checkpoint with the others of its run. If there is no other, compare samplers."""
        updates, engine = self.panel.select(name), self.panel.engine
        run = checkpoints_of_run(engine, name)
        axis, chosen = ("checkpoint", {"value": run}) if len(run) > 1 else ("sampler", {})
        sampler = updates.get(self.panel.controls.sampler, {}).get("value", given[self.panel.controls.sampler])
        shown = self.visibility(axis, name, sampler)
        updates |= {control: updates.get(control, {}) | visible for control, visible in shown.items()}
        return updates | {self.axis: axis, self.chosen: update_values(engine, axis, name) | chosen}

    def visibility(self, axis: str, name: str | None, sampler: str) -> Updates:
        """Hide the control of the setting that varies, and those without effect."""
        visible = {setting: setting != PARAMETERS.get(axis) for setting in self.panel.controls._fields}
        visible["sampler"] = axis not in ("sampler", "eta", FAST)  # eta is a setting of DDIM only
        visible["eta"] = axis == "sampler" or (axis not in ("eta", FAST) and sampler == "ddim")
        if not (name and page_values.class_choices(page_values.config_of(self.panel.engine, name))):
            visible["label"] = visible["guidance"] = False
        controls = self.panel.controls._asdict()
        return {control: gr.update(visible=visible[setting]) for setting, control in controls.items()}

    def variants(self, given: Given) -> list[Variant]:
        """Return the variants that the controls describe. Raises gr.Error."""
        values = self.panel.values(given)
        if given[self.axis] == "class":  # whose control is hidden, so that it leaves the guidance as it is
            values["guidance"] = given[self.panel.controls.guidance]
        return make_variants(self.panel.engine, given[self.axis], given[self.chosen], values)

    def axis_updates(self, given: Given) -> Updates:
        """Offer the values of an axis, and hide the control of the setting that varies."""
        controls = self.panel.controls
        axis, name, sampler = given[self.axis], given[controls.checkpoint], given[controls.sampler]
        values = update_values(self.panel.engine, axis, name)
        return self.visibility(axis, name, sampler) | {self.chosen: values}

    def apply_settings(self, settings: Mapping[str, Any], axis: str, chosen: Sequence[Any]) -> Updates:
        """Put a comparison into the controls. settings: those that do not vary, named as in `SampleSettings`."""
        values, controls = page_values.to_page_values(self.panel.engine, settings), self.panel.controls
        given: Given = {control: values[name] for name, control in controls._asdict().items()}
        return self.restore(dict(given) | {self.axis: axis, self.chosen: list(chosen)})

    def restore(self, given: Given) -> Updates:
        """Put the values of a comparison into the controls. A checkpoint that the visitor may not see any more leaves
        them as they are.
        """
        controls, engine = self.panel.controls, self.panel.engine
        name, choices = given[controls.checkpoint], page_values.checkpoint_choices(engine)
        if name not in [value for _, value in choices]:
            return self.panel.refresh()
        updates = self.panel.checkpoint_updates(name, given[controls.noise_schedule])
        for control, update in self.axis_updates(given).items():
            updates[control] = updates.get(control, {}) | update | {"value": given[control]}
        updates[controls.checkpoint] |= {"choices": choices}
        return updates | {self.axis: gr.update(choices=axes(engine), value=given[self.axis])}

    def show(self, values: Values, table: dict[str, Any]) -> Updates:
        """Show the variants' values and the table. `values` always contains every variant: Gradio's client merges an
        update into one that is still waiting to be drawn, and a missing value would replace the previous one.
        """
        return {self.players[i]: value for i, value in values.items()} | {self.clock: table}


def build(page: gr.Blocks, engine: Engine, sessions: Sessions) -> Tab:
    """Add the tab to the page being built, and return its components."""
    tab = components(engine, sessions)
    comparisons = Comparisons(sessions)
    wire_runs(tab, sessions, comparisons)
    wire_choices(page, tab, comparisons)
    return tab


def components(engine: Engine, sessions: Sessions) -> Tab:
    has_models = bool(page_values.usable_checkpoints(engine))
    with gr.Row(elem_classes="denoise"):
        with gr.Column(scale=3, min_width=320, elem_classes="shown"):
            gr.Markdown(words.COMPARE_HINT, elem_id="compare-hint", elem_classes="about")
            with gr.Row(elem_classes="variants"):
                options = {"is_variant": True, "min_width": 80, "padding": False}
                players = [Player(sessions.runner, **options) for _ in range(MAX_VARIANTS)]
            recording = page_values.find_recording(engine, RECORDING)
            clock = Clock(sessions.runner, MAX_VARIANTS, recording, elem_id="clock")
            words.explain(words.COMPARE)
        with gr.Column(scale=2, min_width=300, elem_classes="settings"):
            with gr.Row(elem_classes="run-buttons"):
                start = gr.Button("Compare", variant="primary", size="lg", elem_id="compare", interactive=has_models)
                stop = gr.Button("Stop", variant="stop", size="lg", elem_id="compare-stop")
            axis = gr.Dropdown(
                axes(engine),
                value="sampler",
                label="What differs",
                elem_id="axis",
                info="Everything else stays the same.",
            )
            chosen = gr.Dropdown(
                page_values.SAMPLERS,
                value=SAMPLERS,
                multiselect=True,
                label="Values",
                elem_id="values",
                info=VALUES_INFO.format(MAX_VARIANTS),
            )
            panel = build_panel(engine, prefix="compare-", images=IMAGES)
    panel.controls.sampler.visible, panel.controls.eta.visible = False, True  # as `choose_axis` would set them
    for control in (axis, chosen):
        page_values.skip_gradio_check(control)
    return Tab(players, clock, start, stop, axis, chosen, panel)


def wire_runs(tab: Tab, sessions: Sessions, comparisons: Comparisons) -> None:
    """Wire Compare and Stop, and show the comparison again after a reload."""

    async def run(request: gr.Request, given: Given) -> AsyncIterator[Updates]:
        if sessions.is_watching(request.session_hash, tab="compare"):  # the second of two quick presses
            yield gr.skip()
            return
        variants = tab.variants(given)
        given = dict(given) | {tab.panel.controls.seed: variants[0].settings.seed}
        comparison = comparisons.start(request.session_hash, variants, given)
        yield {tab.panel.controls.seed: variants[0].settings.seed}  # once: the visitor may type the next one
        async with aclosing(play(request.session_hash, comparison)) as updates:
            async for update in updates:
                yield update

    async def reattach(request: gr.Request, event: gr.EventData) -> AsyncIterator[Updates]:
        comparison = comparisons.find(str(event.comparison), request)
        if comparison is None:
            yield {tab.clock: {"is_lost": True}}
            return
        sessions.check_capacity(request.session_hash)
        async with aclosing(play(request.session_hash, comparison, replay=True)) as updates:
            async for update in updates:
                yield update

    async def play(session: str, comparison: Comparison, replay: bool = False) -> AsyncIterator[Updates]:
        result = comparison.result
        shown, table = first_values(result), result.table()

        def show(table: dict[str, Any]) -> Updates:
            about = {"comparison": comparison.id, "settings": comparisons.settings(comparison)}
            return tab.show(shown, table | about)

        yield show(table)
        async with aclosing(side_by_side(sessions, session, comparison, replay)) as updates:
            async for news in updates:
                shown |= news
                table = update_table(news, result, table)
                yield show(table)
        yield show(result.table(is_over=True))

    async def stop(request: gr.Request) -> None:
        sessions.stop(request.session_hash, tab="compare")

    options = {"concurrency_limit": None} | QUIET
    # By default, Gradio drops a click until the previous event has ended, which is a moment after the button is back.
    comparison = tab.start.click(run, tab.inputs, tab.outputs, trigger_mode="multiple", **options)
    tab.stop.click(stop, queue=False, api_visibility="private")
    comparison.failure(lambda: {tab.clock: OVER}, None, tab.clock, **QUIET)
    tab.clock.reattach(reattach, None, tab.outputs, **options)


def wire_choices(page: gr.Blocks, tab: Tab, comparisons: Comparisons) -> None:
    """Offer the values of the chosen axis and checkpoint, hide the control of the setting that varies, and restore the
    controls of the comparison that is shown again.
    """
    controls, engine = tab.panel.controls, tab.panel.engine
    remembered = gr.Textbox(visible=False)  # the id of the comparison that this browser tab was showing

    def choose_axis(given: Given) -> Updates:
        updates = tab.axis_updates(given)
        if given[tab.axis] == SHORT_RUNS:
            updates[controls.timesteps] = gr.update(visible=True, value=LONG_RUN)
        return updates

    def list_values(given: Given) -> Updates:
        """Offer the schedules and classes of the newly chosen checkpoint, and its samplers if they are others."""
        axis, name = given[tab.axis], given[controls.checkpoint]
        if axis == "sampler":
            values = update_values(engine, axis, name)
            names = [value for _, value in values["choices"]]
            kept = [value for value in given[tab.chosen] if value in names]
            return {tab.chosen: values | {"value": kept or values["value"]}}
        return {tab.chosen: update_values(engine, axis, name) if axis in ("schedule", "class") else gr.skip()}

    def list_checkpoints(axis: str) -> Updates:
        """Also offer the checkpoints that were added since the axis was chosen."""
        choices = page_values.checkpoint_choices(engine)
        return {tab.chosen: gr.update(choices=choices) if axis == "checkpoint" else gr.skip()}

    def refresh(request: gr.Request, id: str) -> Updates:
        ready = {tab.start: gr.update(interactive=bool(page_values.usable_checkpoints(engine)))}
        comparison = comparisons.find(str(id), request)
        return ready | (tab.restore(comparison.given) if comparison else tab.panel.refresh())

    tab.axis.focus(lambda: {tab.axis: gr.update(choices=axes(engine))}, None, tab.axis, **QUIET)
    axis_inputs = {tab.axis, controls.checkpoint, controls.sampler}
    tab.axis.input(choose_axis, axis_inputs, [tab.chosen, *controls], **QUIET)
    tab.chosen.focus(list_checkpoints, tab.axis, tab.chosen, **QUIET)
    inputs = {tab.axis, tab.chosen, controls.checkpoint}
    controls.checkpoint.input(list_values, inputs, tab.chosen, **QUIET)
    outputs = [tab.start, tab.axis, tab.chosen, *tab.panel.outputs]
    page.load(refresh, remembered, outputs, js=scripts.REMEMBERED_COMPARISON, **QUIET)


def axes(engine: Engine) -> list[tuple[str, str]]:
    """Return the axes on offer: those of classes only while there is a model with classes, that of a fast model only
    while there is one.
    """
    usable = [entry.config for entry in page_values.visible_checkpoints(engine) if not entry.problem]
    has_classes = any(page_values.class_choices(config) for config in usable)
    hidden = () if has_classes else CLASS_AXES
    hidden = hidden if page_values.fast_pairs(engine) else (*hidden, FAST)
    return [axis for axis in AXES if axis[1] not in hidden]


def update_values(engine: Engine, axis: str, name: str | None) -> Any:
    """Return the update of the dropdown of values for an axis and the checkpoint `name`."""
    if axis in NUMBERS:
        choices, value = NUMBERS[axis]
    elif axis == "sampler":
        choices = page_values.sampler_choices(page_values.config_of(engine, name) if name else {})
        value = [value for _, value in choices[:3]]
    elif axis == "schedule":
        choices = page_values.schedule_choices(engine, name) if name else []
        value = [choice for _, choice in choices]
    elif axis == "class":
        config = page_values.config_of(engine, name) if name else {"network": {}}
        choices = [choice for choice in page_values.class_choices(config) if choice[1] != page_values.EACH]
        value = [choice for _, choice in choices if choice != page_values.ANY][:MAX_VARIANTS]
    else:
        choices = page_values.checkpoint_choices(engine)
        value = [name for _, name in choices][:MAX_VARIANTS]
    return gr.update(
        choices=choices,
        value=value,
        allow_custom_value=axis in NUMBERS,
        info=VALUES_INFO.format(most_values(axis)) + (" You can type others." if axis in NUMBERS else ""),
    )


def checkpoints_of_run(engine: Engine, name: str) -> list[str]:
    """Return checkpoints of the run that saved the checkpoint `name`, by rising step: this one, the newest, and others
    at even distances; MAX_VARIANTS at most.
    """
    usable = [entry for entry in page_values.visible_checkpoints(engine) if not entry.problem]
    run = next(entry.run for entry in usable if entry.name == name)
    # The newest of a run is listed first.
    kept = [entry for entry in reversed(usable) if entry.run == run and (not entry.is_exact or entry.name == name)]
    names = [entry.name for entry in kept]
    if len(names) <= MAX_VARIANTS:
        return names
    places, own = [round(i * (len(names) - 1) / (MAX_VARIANTS - 1)) for i in range(MAX_VARIANTS)], names.index(name)
    if own not in places:
        places.remove(min(places[:-1], key=lambda place: abs(place - own)))
        places.append(own)
    return [names[place] for place in sorted(places)]


def first_values(result: ComparisonResult) -> Values:
    """Return the players' values at the start of a comparison: each variant has its label and waits, the other players
    are hidden.
    """
    values: Values = {i: {"state": "idle"} for i in range(MAX_VARIANTS)}
    return values | {i: {"state": "waiting", "label": variant.label} for i, variant in enumerate(result.variants)}


def update_table(news: Values, result: ComparisonResult, table: dict[str, Any]) -> dict[str, Any]:
    """Return a new table if a variant has ended, otherwise `table`."""
    is_end = any(value["state"] not in ("waiting", "running") for value in news.values())
    return result.table() if is_end else table
