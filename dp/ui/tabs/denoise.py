"""The Denoise tab: choose settings, press Generate and watch the run. The components in page order, then one function
per concern that wires them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from dp.serving.engine import Engine
from dp.serving.files import read_settings
from dp.serving.handle import SampleRequest
from dp.system.environment import runs_dir
from dp.system.validation import message_of
from dp.ui import scripts, words
from dp.ui.auth import permission
from dp.ui.browser_models import BrowserModels, browser_run
from dp.ui.components.changes.changes import Changes
from dp.ui.components.player.player import Player
from dp.ui.components.start_image.start_image import StartImage, read_start_image, start_image_props
from dp.ui.hub_models import HubLoader
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import QUIET, Given, Panel, Updates, build_panel
from dp.ui.streaming import Sessions
from dp.ui.web.graph import missing_packages

RECORDING = "recording.json"  # in the folder of a bundled model
SERVER, BROWSER = "server", "browser"  # what may compute a run
PREPARING = "The server prepares {name} for browsers, once: this takes up to a minute…"
MAX_ROWS = 800  # network rows of a run that the page starts by itself when it is opened by a link


@dataclass(frozen=True)
class Tab:
    """The tab's components."""

    player: Player
    generate: gr.Button
    stop: gr.Button
    changes: Changes
    panel: Panel
    start_image: StartImage
    walk_to: gr.Textbox
    link: gr.Button
    load: gr.UploadButton
    compute_on: gr.Radio

    @property
    def inputs(self) -> set[Component]:
        """Return the inputs of a run."""
        return {*self.panel.controls, self.walk_to, self.start_image, self.compute_on}

    @property
    def linked(self) -> list[Component]:
        """Return the controls in the order of the scripts' parameters."""
        return [*self.panel.controls, self.walk_to]

    @property
    def outputs(self) -> list[Component]:
        """Return the components that a run updates."""
        return [self.player, self.panel.controls.seed]

    def apply_settings(self, settings: Mapping[str, Any]) -> Updates:
        """Put settings, named as in `SampleSettings`, into the controls; the run starts from pure noise."""
        return {self.start_image: None, self.walk_to: None} | self.panel.apply_settings(settings)

    def show(self, value: dict[str, Any]) -> Updates:
        """Show a value of the player, and the seed when a run starts."""
        seeded = value["state"] == "waiting" and "seed" in value
        return {self.player: value} | ({self.panel.controls.seed: value["seed"]} if seeded else {})


def build(page: gr.Blocks, engine: Engine, sessions: Sessions) -> Tab:
    """Add the tab to the page being built, and return its components."""
    tab = components(engine, sessions)
    remembered = gr.Textbox(visible=False)  # the id of the run that this browser tab was showing
    models = BrowserModels(engine, runs_dir())
    page.own_routes += models.routes()
    wire_runs(page, tab, engine, sessions, remembered, models)
    refreshed = wire_settings(page, tab, engine, sessions, remembered)
    wire_start_image(page, tab, engine)
    wire_changes(tab, refreshed)
    for script in scripts.ON_LOAD:
        page.load(js=script, api_visibility="private")
    return tab


def components(engine: Engine, sessions: Sessions) -> Tab:
    has_models = bool(page_values.usable_checkpoints(engine))
    with gr.Row(elem_classes="denoise"):
        with gr.Column(scale=3, min_width=320, elem_classes="shown"):
            recording = page_values.find_recording(engine, RECORDING)
            player = Player(sessions.runner, recording=recording, can_compute=True, elem_id="player")
            words.explain(words.DENOISE, words.EQUATIONS)
        with gr.Column(scale=2, min_width=300, elem_classes="settings"):
            with gr.Row(elem_classes="run-buttons"):
                generate = gr.Button(
                    "Generate", variant="primary", size="lg", elem_id="generate", interactive=has_models
                )
                stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop")
            changes = Changes(fold="more", elem_id="changes", padding=False)
            panel = build_panel(engine, fold=HubLoader)
            with panel.more:
                gr.Markdown(words.START, elem_classes="about")
                start_image = StartImage(elem_id="start")
                gr.Markdown(words.WALK, elem_classes="about")
                # Not a gr.Number: when the accordion opens, an empty one becomes 0, which is a valid seed.
                walk_to = gr.Textbox(max_lines=1, placeholder="no walk", label="Walk to seed", elem_id="walk")
                page_values.skip_gradio_check(walk_to)
                compute_on = compute_control()
            with gr.Row():
                link = gr.Button("Copy link", size="sm", elem_id="link", min_width=120)
                load = gr.UploadButton(
                    "Load settings", size="sm", elem_id="load", file_types=[".png"], type="binary", min_width=120
                )
            gr.HTML(scripts.LINK_FIELD, elem_id="link-field", padding=False)
    return Tab(player, generate, stop, changes, panel, start_image, walk_to, link, load, compute_on)


def compute_control() -> gr.Radio:
    missing = missing_packages()
    info = words.NO_BROWSER_RUNS.format(packages=" and ".join(missing)) if missing else words.BROWSER_RUNS
    choices = [("This server", SERVER), ("Your browser", BROWSER)]
    options = {"interactive": not missing, "elem_id": "compute-on"}
    return gr.Radio(choices, value=SERVER, label="Compute on", info=info, **options)


def sample_request(engine: Engine, tab: Tab, given: Given) -> SampleRequest:
    """Return the run that the controls describe. Raises gr.Error."""
    values = tab.panel.values(given)
    try:
        network = page_values.config_of(engine, values["checkpoint"])["network"]
        image_size, channels = network["image_size"], network.get("channels", 3)
        start, mask, strength = read_start_image(given[tab.start_image], image_size, channels)
    except ValueError as error:
        raise page_values.user_error(error) from None
    name, settings = page_values.parse_settings(engine, **values, walk_to=given[tab.walk_to], strength=strength)
    return SampleRequest(name, settings, start, mask)


async def in_browser(models: BrowserModels, sample: SampleRequest) -> AsyncIterator[dict[str, Any]]:
    """Yield the player's values for a run that the page computes itself: the engine does not know it."""
    settings, run = sample.settings, f"browser-{secrets.token_hex(8)}"
    begun = {"run": run, "seed": settings.seed, "walk": settings.walk_to is not None}
    yield {"state": "waiting"} | begun
    try:
        async with aclosing(models.wait(sample.checkpoint)) as waiting:
            async for found in waiting:
                if found is None:
                    message = {"message": PREPARING.format(name=sample.checkpoint), "heartbeat": time.monotonic()}
                    yield {"state": "waiting"} | begun | message
                else:
                    yield {"state": "browser", "here": browser_run(sample, found)} | begun
    except ValueError as error:
        yield {"state": "failed", "message": message_of(error)} | begun


def wire_runs(
    page: gr.Blocks, tab: Tab, engine: Engine, sessions: Sessions, remembered: gr.Textbox, models: BrowserModels
) -> None:
    """Wire the buttons that start and stop runs, and reattach to the run after a reload or a lost connection."""
    controls = tab.panel.controls

    async def generate(request: gr.Request, given: Given) -> AsyncIterator[Updates]:
        if sessions.is_watching(request.session_hash):  # the second of two quick presses
            yield gr.skip()
            return
        sample, is_local = sample_request(engine, tab, given), given[tab.compute_on] == BROWSER
        values = in_browser(models, sample) if is_local else sessions.start(request.session_hash, sample)
        async with aclosing(values) as shown:
            async for value in shown:
                yield tab.show(value)
        if value["state"] == "failed":
            raise page_values.user_error(value["message"])

    async def rerun(request: gr.Request, event: gr.EventData, given: Given) -> AsyncIterator[Updates]:
        """Start a run from the noise of the one that is shown, or from new noise."""
        chosen = {controls.random_seed: event.seed is None, controls.seed: event.seed}
        async with aclosing(generate(request, dict(given) | chosen)) as updates:
            async for update in updates:
                yield update

    async def reattach(request: gr.Request, run: str) -> AsyncIterator[Updates]:
        """Show the run that this browser tab was showing before it was reloaded."""
        values = sessions.reattach(request, str(run))
        if values is None:
            yield gr.skip()
            return
        async with aclosing(values) as shown:
            async for value in shown:
                yield tab.show(value)

    async def reconnect(request: gr.Request, run: str) -> AsyncIterator[Updates]:
        """Reattach a page that lost its connection and still shows a run, which the server may have evicted."""
        if page_values.find_run(sessions.runner, str(run), request) is None:
            yield tab.show({"state": "stopped", "message": "the server no longer has this run"})
            return
        async with aclosing(reattach(request, run)) as updates:
            async for update in updates:
                yield update

    async def stop(request: gr.Request) -> None:
        sessions.stop(request.session_hash)

    async def disconnect(request: gr.Request) -> None:
        sessions.disconnect(request.session_hash)

    run_event = {"outputs": tab.outputs, "concurrency_limit": None} | QUIET
    # By default, Gradio drops a click until the previous event has ended, which is a moment after the button is back.
    tab.generate.click(generate, tab.inputs, trigger_mode="multiple", **run_event)
    tab.player.rerun(rerun, tab.inputs, trigger_mode="multiple", **run_event)
    tab.stop.click(stop, queue=False, api_visibility="private")
    page.unload(disconnect)
    page.load(reattach, remembered, js=scripts.REMEMBERED_RUN, **run_event)
    tab.player.reconnect(reconnect, remembered, js=scripts.REMEMBERED_RUN, **run_event)


def wire_settings(
    page: gr.Blocks, tab: Tab, engine: Engine, sessions: Sessions, remembered: gr.Textbox
) -> gr.events.Dependency:
    """Apply the settings of the page's link, of the run that is shown again, or of a saved PNG; and copy a link to the
    current settings. Return the event that puts the first ones into the controls.
    """

    opened = gr.Textbox(visible=False)  # what to do about the link that opened the page, for the script

    def refresh(request: gr.Request, run: str, random_seed: bool) -> Updates:
        names = page_values.usable_checkpoints(engine)
        ready = {tab.generate: gr.update(interactive=bool(names))}
        if names and (handle := page_values.find_run(sessions.runner, str(run), request)):
            return ready | settings_of(handle.provenance) | {tab.panel.controls.random_seed: bool(random_seed)}
        settings, ignored = page_values.parse_link(engine, request.query_params) if names else ({}, "")
        if ignored:
            gr.Warning(ignored)
        walk_to = {tab.walk_to: settings["walk_to"]} if "walk_to" in settings else {}
        return ready | {opened: action(settings, ignored)} | walk_to | tab.panel.refresh(settings)

    def action(settings: Mapping[str, Any], ignored: str) -> str:
        """Return what the page does about a link: "draw" its run, "suggest" to press Generate, or "" without a link."""
        if not settings:
            return ""
        may_draw = not ignored and not permission.on_zero_gpu()
        return "draw" if may_draw and page_values.count_rows(engine, settings) <= MAX_ROWS else "suggest"

    def settings_of(made_with: Mapping[str, Any]) -> Updates:
        """Put the settings of the run that is shown again into the controls."""
        try:
            updates = {tab.walk_to: made_with.get("walk_to")} | tab.panel.refresh(made_with)
        except gr.Error:
            updates = tab.panel.refresh()  # such as the classes of single images, for which the page has no control
        return updates

    def load(given: Given) -> Updates:
        try:
            saved = read_settings(given[tab.load])
        except ValueError as error:
            raise page_values.user_error(error) from None
        updates = tab.panel.apply_settings(saved)
        start = None
        if saved.get("start") and given[tab.start_image]:
            start = given[tab.start_image] | {"strength": saved.get("strength", 1)}
        elif saved.get("start"):
            gr.Info("This run started from an image that is not in the PNG. Choose it under Start from an image.")
        return {tab.start_image: start, tab.walk_to: saved.get("walk_to")} | updates

    outputs = [tab.generate, opened, tab.walk_to, *tab.panel.outputs]
    inputs = [remembered, tab.panel.controls.random_seed]
    refreshed = page.load(refresh, inputs, outputs, js=scripts.REMEMBERED_SETTINGS, **QUIET)
    refreshed.success(None, opened, js=scripts.OPEN_LINK, **QUIET)
    outputs = [tab.start_image, tab.walk_to, *tab.panel.outputs]
    tab.load.upload(load, {tab.load, tab.start_image}, outputs, **QUIET)
    tab.link.click(None, [*tab.linked, tab.start_image], js=scripts.COPY_LINK, api_visibility="private")
    return refreshed


def wire_start_image(page: gr.Blocks, tab: Tab, engine: Engine) -> None:
    """Update the start image's size and noise levels when the checkpoint or the schedule changes."""
    controls = tab.panel.controls

    def update(given: Given) -> Updates:
        name, schedule = given[controls.checkpoint], given[controls.noise_schedule]
        chosen = None if schedule == page_values.TRAINED else schedule
        props = start_image_props(page_values.config_of(engine, name), chosen) if name else {}
        return {tab.start_image: gr.update(**props)}

    for event in (page.load, controls.checkpoint.change, controls.noise_schedule.change):
        event(update, {controls.checkpoint, controls.noise_schedule}, tab.start_image, **QUIET)


def wire_changes(tab: Tab, refreshed: gr.events.Dependency) -> None:
    """Keep the list of what differs from the defaults and from the run that is shown, in the browser."""
    controls = tab.panel.controls
    described = [*tab.linked, tab.start_image]
    listed = {"inputs": [*described, tab.changes], "outputs": tab.changes} | QUIET
    gr.on([control.change for control in described], None, js=scripts.DESCRIBE_CHANGES, **listed)
    # The last one: a page that is loaded again shows the settings of its run.
    for begin in (tab.generate.click, tab.player.rerun, refreshed.then):
        begin(None, js=scripts.BEGIN_RUN, **listed)
    reset = [controls.noise_schedule, controls.time_difference_steps, controls.eta, tab.walk_to, tab.start_image]
    tab.changes.remove(None, [tab.changes, *reset], reset, js=scripts.RESET_SETTING, **QUIET)
