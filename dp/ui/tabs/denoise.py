"""The Denoise tab: choose, press Generate, watch. First the components, in the order of the page; then all wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import gradio as gr
from torch import Tensor

from dp.diffusion.settings import SampleSettings
from dp.serving.files import settings_in
from dp.ui import scripts, words
from dp.ui.components.player.player import Player, show
from dp.ui.components.start_image.start_image import StartPicture, props_of, read
from dp.ui.hub_models import Loader
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import Panel
from dp.ui.streaming import Viewers
from dp.ui.zero_gpu import Asked, Lend, NotLent, waiting_for


def build(page: gr.Blocks, viewers: Viewers, lend: Lend | None) -> Panel:
    """Add the tab to the page being built; returns its controls. lend: samples where the GPU exists only inside each
    call, and whatever asks for a run after it has ended is not offered.
    """
    engine = viewers.engine
    names = page_values.usable_names(engine)

    with gr.Row(elem_classes="denoise"):
        with gr.Column(scale=3, min_width=320):
            player = Player(engine, keeps_runs=lend is None, elem_id="player")
        with gr.Column(scale=2, min_width=300):
            generate = gr.Button("Generate", variant="primary", size="lg", elem_id="generate", interactive=bool(names))
            stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop")
            panel = Panel(engine, fold=Loader)
            with gr.Accordion("Start from a picture", open=False, elem_id="start-fold"):
                gr.Markdown(words.START, elem_classes="about")
                picture = StartPicture(elem_id="start")
            with gr.Accordion("Walk between two seeds", open=False, elem_id="walk-fold"):
                gr.Markdown(words.WALK, elem_classes="about")
                # No gr.Number: an empty one becomes 0 as soon as the fold is opened, and 0 is a seed.
                walk_to = gr.Textbox(max_lines=1, placeholder="no walk", label="Walk to seed", elem_id="walk")
            with gr.Row():
                link = gr.Button("Copy link", size="sm", elem_id="link", min_width=120)
                png = gr.UploadButton(
                    "Load settings", size="sm", elem_id="load", file_types=[".png"], type="binary", min_width=120
                )
            gr.HTML(scripts.LINK_FIELD, elem_id="link-field", padding=False)
    words.explain(words.DENOISE, words.EQUATIONS)  # last, so that on a phone the button is near the pictures

    # ------------------------------------------------------------------------
    # Wiring

    settings = [*panel.settings, walk_to]
    page_values.unchecked(walk_to)

    def asked(*values: Any) -> tuple[str, SampleSettings, Tensor | None, Tensor | None]:
        *values, given = values
        try:
            network = page_values.config_of(engine, values[0])["network"]
            start, mask, strength = read(given, network["image_size"], network.get("channels", 3))
        except ValueError as error:
            raise page_values.complaint(error) from None
        return *page_values.read(engine, *values, strength=strength), start, mask

    async def from_engine(request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        async with aclosing(viewers.start(request.session_hash, *asked(*values))) as shown:
            async for value in shown:
                yield on_page(value)
        if value["state"] == "failed":
            raise page_values.complaint(value["message"])

    async def again(request: gr.Request, run: str) -> AsyncIterator[tuple[Any, ...]]:
        """Take up the run that this tab was watching before it was reloaded."""
        values = viewers.again(request.session_hash, str(run))
        if values is None:
            yield on_page(None)
            return
        async with aclosing(values) as shown:
            async for value in shown:
                yield on_page(value)

    def alone(*values: Any) -> Iterator[tuple[Any, ...]]:
        run = Asked(*asked(*values))
        about = {"run": uuid4().hex, "walk": run.settings.walk_to is not None}
        yield on_page({"state": "waiting", "message": waiting_for([run]), "seed": run.settings.seed} | about)
        try:
            for _, frame, is_last in lend([run]):
                yield on_page(show(frame, "done" if is_last else "running") | about)
        except NotLent as why_not:
            yield on_page({"state": "failed", "message": why_not.sentence} | about)
            raise

    async def regain(request: gr.Request, run: str) -> AsyncIterator[tuple[Any, ...]]:
        """The same for a page that has lost its connection, and shows a run that may be no more."""
        if viewers.engine.ticket(str(run)) is None:
            yield on_page({"state": "stopped", "message": "the server no longer has this run"})
            return
        async with aclosing(again(request, run)) as shown:
            async for outputs in shown:
                yield outputs

    async def halt(request: gr.Request) -> None:
        viewers.stop(request.session_hash)

    async def leave(request: gr.Request) -> None:
        viewers.leave(request.session_hash)

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    watching = {"outputs": [player, panel.seed], "concurrency_limit": None} | quiet
    run = generate.click(alone if lend else from_engine, [*settings, picture], **watching)
    if lend:  # nothing here can reach into the call: Gradio closes it
        stopped = stop.click(None, cancels=[run], api_visibility="private")
        stopped.then(lambda: {"state": "stopped"}, None, player, **quiet)
    else:
        stop.click(halt, queue=False, api_visibility="private")
        page.unload(leave)
        remembered = gr.Textbox(visible=False)
        page.load(again, remembered, js=scripts.REMEMBERED, **watching)
        player.lost(regain, remembered, js=scripts.REMEMBERED, **watching)

    def look_again(request: gr.Request) -> tuple[Any, ...]:
        """The checkpoints that are there now, and the settings of the link by which the page was opened, if any."""
        names = page_values.usable_names(engine)
        linked, ignored = page_values.of_link(engine, request.query_params) if names else ({}, "")
        if ignored:
            gr.Warning(ignored)
        return gr.update(interactive=bool(names)), linked.get("walk_to", gr.skip()), *panel.look_again(linked)

    def load(data: bytes, given: Any) -> tuple[Any, ...]:
        """The settings in a PNG that was saved here. It does not hold the picture that its run has set out from."""
        try:
            made_with = settings_in(data)
        except ValueError as error:
            raise page_values.complaint(error) from None
        values = panel.restored(made_with)
        if made_with.get("start") and not given:
            gr.Info("This run set out from a picture, which a PNG does not hold: choose it under Start from a picture.")
        given = given | {"strength": made_with.get("strength", 1)} if made_with.get("start") and given else None
        return given, made_with.get("walk_to"), *values

    def levels(name: str | None, schedule: str) -> Any:
        chosen = None if schedule == page_values.TRAINED else schedule
        return gr.update(**props_of(page_values.config_of(engine, name), chosen)) if name else gr.skip()

    for script in (scripts.KEEP_FOCUS, scripts.SEND_LESS):
        page.load(js=script, api_visibility="private")
    page.load(look_again, None, [generate, walk_to, *panel.everything], **quiet)
    png.upload(load, [png, picture], [picture, walk_to, *panel.everything], **quiet)
    for changed in (page.load, panel.checkpoint.change, panel.schedule.change):
        changed(levels, [panel.checkpoint, panel.schedule], picture, **quiet)
    link.click(None, settings, js=scripts.COPY_LINK, api_visibility="private")
    return panel


def on_page(value: dict[str, Any] | None) -> tuple[Any, ...]:
    """A value of the player, and the seed where a run begins."""
    if value is None:
        return (gr.skip(),) * 2
    return value, value["seed"] if value["state"] == "waiting" and "seed" in value else gr.skip()
