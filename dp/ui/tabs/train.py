"""The Train tab: upload images, choose how long to train, press Start, watch. Training runs in a process of its own,
which the page knows by its run folder only. The components in page order, then one function per concern that wires
them.
"""

from __future__ import annotations

import re
import secrets
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency
from gradio.utils import get_upload_folder

from dp.data.archives import archive_kinds
from dp.data.prepare import prepare
from dp.serving.engine import Engine
from dp.system.environment import runs_dir
from dp.system.validation import message_of, quote
from dp.training import processes
from dp.training.presets import PRESETS, SIZES
from dp.training.run_folder import RunFolder
from dp.ui import words
from dp.ui.auth import permission
from dp.ui.components.run_board.run_board import RunBoard, free_name, run_of
from dp.ui.components.upload.upload import ImageUpload, images_of, value_of_report, value_of_run
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import QUIET, Given, Panel, Updates
from dp.ui.training import publish, remote_training
from dp.ui.training.form import Form, choices
from dp.ui.training.time_estimate import measured
from dp.ui.training.uploads import LIMITS, Draft

OF_RUN = "run:"  # before a run's id in a page's reference to its images; a draft's id has no prefix
OWN = "Custom settings. *How long will this take?* in the advanced settings measures them."
MEASURING = "measuring…"
EVENT = QUIET | {"concurrency_limit": None}


@dataclass(frozen=True)
class Tab:
    """brought: which images the page is about, a reference and not a gr.State, which anybody could evict by inventing
    sessions. times: those of the presets, in words.
    """

    refused: gr.Markdown
    inside: gr.Row
    intake: ImageUpload
    form: Form
    start: gr.Button
    rent: gr.Button
    note: gr.Markdown
    board: RunBoard
    brought: gr.Textbox
    times: gr.State

    @property
    def images(self) -> list[Component]:
        """The outputs of `show_images`."""
        return [self.intake, self.brought, self.start, self.rent]

    @property
    def emptied(self) -> list[Component]:
        """The outputs of `empty`."""
        return [*self.images, self.form.preset, self.note]

    @property
    def inputs(self) -> set[Component]:
        """The inputs of the buttons that create a run."""
        return {self.brought, self.times, *self.form.controls.values()}

    def show_images(self, shown: dict[str, Any], reference: str, can_start: bool = False) -> Updates:
        button = gr.update(interactive=can_start)
        return {self.intake: shown, self.brought: reference, self.start: button, self.rent: button}

    def empty(self, times: Mapping[str, str]) -> Updates:
        """Show the form without images. The times of the presets remain known."""
        updates = self.show_images({"state": "empty"}, "")
        return updates | {self.form.preset: gr.update(choices=choices(times)), self.note: ""}


def build(page: gr.Blocks, engine: Engine, tabs: gr.Tabs, panels: Mapping[str, Panel]) -> None:
    """Add the tab to the page being built. panels: the sampling controls of the tabs in which a checkpoint can be
    opened, by the tabs' ids.
    """
    tab = components(list(panels))
    wire_access(page, tab)
    checks = wire_checks(tab)
    trials = wire_measuring(tab, checks)
    wire_leaving(tab, [*checks, *trials])
    wire_form(tab)
    wire_start(tab, trials)
    wire_board(tab)
    wire_opening(tab, engine, tabs, panels)


def components(tabs: list[str]) -> Tab:
    reason = permission.denial_reason()
    refused = gr.Markdown(reason or "", visible=reason is not None, elem_id="refused")
    if permission.must_sign_in():
        gr.LoginButton(size="sm", min_width=120)
    with gr.Row(visible=reason is None, elem_classes="train", elem_id="train") as inside:
        with gr.Column(scale=2, min_width=300):
            intake = ImageUpload(elem_id="intake")
            form = Form()
            with gr.Row():
                start = gr.Button(
                    "Start training", variant="primary", size="lg", elem_id="start-training", interactive=False, scale=3
                )
                rent = gr.Button("Rent a machine", size="lg", elem_id="rent-training", interactive=False, min_width=200)
            note = gr.Markdown(elem_id="note", elem_classes="about")
        with gr.Column(scale=3, min_width=320):
            served = [
                publish.offer,
                publish.publish,
                remote_training.machines,
                remote_training.price,
                remote_training.rent,
            ]
            served += [remote_training.exchange, remote_training.end, remote_training.forget]
            board = RunBoard(tabs, served, remote_training.EXCHANGE_S, elem_id="board")
    words.explain(words.TRAIN)
    brought = gr.Textbox("", visible=False, elem_id="brought")
    return Tab(refused, inside, intake, form, start, rent, note, board, brought, gr.State({}))


def wire_access(page: gr.Blocks, tab: Tab) -> None:
    """The tab's contents, or the reason why this visitor may not train."""

    def admit(request: gr.Request) -> Updates:
        reason = permission.denial_reason(request)
        shown = gr.update(value=reason or "", visible=reason is not None)
        return {tab.refused: shown, tab.inside: gr.update(visible=reason is None)}

    page.load(admit, None, [tab.refused, tab.inside], **EVENT)


def wire_checks(tab: Tab) -> list[Dependency]:
    """Check images when they were uploaded, and again for another image size. Returns the events."""
    size = tab.form.size

    def on_upload(request: gr.Request, event: gr.EventData, given: Given) -> Iterator[Updates]:
        permitted(request)
        forget(given[tab.brought])
        try:
            draft = Draft(event.draft)
            draft.keep({"files": event.files})
        except (ValueError, OSError) as error:  # the page may have left the draft already, and then ignores this
            yield tab.show_images({"state": "empty", "message": message_of(error), "draft": event.draft}, "")
            return
        yield from check(tab, draft, given[size])

    def resize(given: Given) -> Iterator[Updates]:
        with suppress(ValueError):  # no draft
            draft = Draft(given[tab.brought])
            if draft.facts().get("size") != given[size]:
                yield from check(tab, draft, given[size])
                return
        yield gr.skip()

    inputs = {tab.brought, size}
    first = tab.intake.uploaded(on_upload, inputs, tab.images, **EVENT)
    # Checks exclude each other: a new size cancels a check of the upload, and waits for one of another new size.
    second = size.change(resize, inputs, tab.images, cancels=[first], trigger_mode="always_last", **EVENT)
    return [first, second]


def check(tab: Tab, draft: Draft, image_size: Any) -> Iterator[Updates]:
    """Check and decode a draft's images, and show how far that is."""
    whose = {"draft": draft.id}
    try:
        if image_size not in SIZES:
            raise ValueError(f"Image size must be one of {', '.join(map(str, SIZES))}, got {quote(image_size)}")
        facts = {"files": draft.facts().get("files")}
        names = draft.names(facts["files"])
        facts["dataset"] = called(names)
        draft.keep(facts)
        steps = prepare(draft.sources(names), draft.dataset, image_size, names=names, limits=LIMITS)
        with closing(steps):
            for progress in steps:
                shown = {"state": "checking"} | progress._asdict() | {"report": None} | whose
                yield tab.show_images(shown, draft.id)
                Draft(draft.id)  # raises if the page left the draft before it could cancel this check
        shown = value_of_report(progress.report, draft.dataset) | whose
        draft.keep(facts | {"size": image_size, "count": len(progress.report.accepted)})
        yield tab.show_images(shown, draft.id, can_start=True)
    except (ValueError, OSError) as error:
        yield tab.show_images({"state": "empty", "message": message_of(error)} | whose, "")
    finally:
        draft.delete_remains()


def wire_measuring(tab: Tab, checks: Sequence[Dependency]) -> list[Dependency]:
    """Measure how long the presets take after a check, and the form's own settings on request. Returns the events."""

    async def measure_presets(request: gr.Request, given: Given) -> AsyncIterator[Updates]:
        permitted(request)
        times = given[tab.times]
        try:
            dataset = uploaded(given[tab.brought])["path"]
        except ValueError:  # no images to measure with
            yield {tab.times: times}
            return
        for name in [name for name in PRESETS if name not in times]:
            labels = choices(dict.fromkeys(PRESETS, MEASURING) | times)
            yield {tab.form.preset: gr.update(choices=labels), tab.times: times}
            async with aclosing(measured(dataset, PRESETS[name])) as trial:
                async for found in trial:
                    times = times | ({name: found.words} if found else {})
                    yield {tab.times: times}  # lets Gradio notice that the page has gone
        yield {tab.form.preset: gr.update(choices=choices(times)), tab.times: times}

    async def measure_own(request: gr.Request, given: Given) -> AsyncIterator[Updates]:
        permitted(request)
        try:
            settings = tab.form.settings(given)
            dataset = uploaded(given[tab.brought])["path"]
        except ValueError as error:
            raise page_values.user_error(error) from None
        async with aclosing(measured(dataset, settings)) as trial:
            async for found in trial:
                yield {tab.note: f"{settings.steps:,} steps: {found.words if found else MEASURING}"}

    outputs = [tab.form.preset, tab.times]
    trials = [done.then(measure_presets, {tab.brought, tab.times}, outputs, **EVENT) for done in checks]
    inputs = {tab.brought, *tab.form.controls.values()}
    return [*trials, tab.form.measure.click(measure_own, inputs, tab.note, **EVENT)]


def wire_leaving(tab: Tab, events: list[Dependency]) -> None:
    """Forget the images when their upload is cancelled or removed, and cancel the events that deal with them."""

    def leave(event: gr.EventData, given: Given) -> Updates:
        forget(event.draft)
        forget(given[tab.brought])
        return tab.empty(given[tab.times])

    for stopping in (tab.intake.canceled, tab.intake.removed):
        stopping(leave, {tab.brought, tab.times}, tab.emptied, cancels=events, **EVENT)


def wire_form(tab: Tab) -> None:
    """The presets, and the note below the form."""

    def choose(name: str) -> Updates:
        return tab.form.set(PRESETS[name]) | {tab.note: ""}

    tab.form.preset.input(choose, tab.form.preset, [*tab.form.own, tab.note], **EVENT)
    for control in tab.form.own:
        control.input(lambda: {tab.note: OWN}, None, tab.note, **EVENT)


def wire_start(tab: Tab, trials: list[Dependency]) -> None:
    """Start training here, or open the board's form for renting a machine."""

    def start(request: gr.Request, given: Given) -> Updates:
        run = create_run(request, tab, given)
        try:
            processes.start(run)
        except (ValueError, OSError) as error:
            raise page_values.user_error(error) from None
        return tab.empty(given[tab.times]) | {tab.board: {"show": run.id}, tab.form.name: ""}

    def rent(request: gr.Request, given: Given) -> Updates:
        run = create_run(request, tab, given)
        return tab.empty(given[tab.times]) | {tab.board: {"show": run.id, "rent": True}, tab.form.name: ""}

    outputs = [tab.board, *tab.emptied, tab.form.name]
    for button, handler in ((tab.start, start), (tab.rent, rent)):
        button.click(handler, tab.inputs, outputs, cancels=trials, **EVENT)


def create_run(request: gr.Request, tab: Tab, given: Given) -> RunFolder:
    """Create a run from the form and the page's images, and forget the images' draft. Raises gr.Error."""
    permitted(request)
    reference = given[tab.brought]
    try:
        settings, images = tab.form.settings(given), uploaded(reference)
        if (side := images["size"]) != settings.image_size:
            raise ValueError(f"These images were prepared at {side} × {side}: upload them again for another size.")
        config = settings.config(images["dataset"], images["count"], time.time())
        config["name"] = free_name(config["name"])
        if reference.startswith(OF_RUN):
            return processes.duplicate(run_of(reference.removeprefix(OF_RUN)), runs_dir(), **config)
        run = processes.create(runs_dir(), config, images["path"])
    except (ValueError, OSError) as error:
        raise page_values.user_error(error) from None
    forget(reference)
    return run


def wire_board(tab: Tab) -> None:
    """Duplicate a run into the form, and download a checkpoint."""

    def duplicate(request: gr.Request, event: gr.EventData, reference: str) -> Updates:
        permitted(request)
        try:
            run = run_of(event.run)
            shown, settings = value_of_run(run)
        except (ValueError, OSError) as error:
            raise page_values.user_error(error) from None
        forget(reference)
        images = tab.show_images(shown, OF_RUN + run.id, can_start=True)
        return images | tab.form.set(settings) | {tab.form.name: free_name(run.name), tab.note: OWN}

    def download(request: gr.Request, event: gr.EventData) -> Updates:
        permitted(request)
        try:
            archive = zip_checkpoint(run_of(event.run), int(event.checkpoint))
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise page_values.user_error(error) from None
        return {tab.board: {"file": gr.FileData(path=str(archive), orig_name=archive.name).model_dump()}}

    outputs = [*tab.images, tab.note, *tab.form.controls.values()]
    tab.board.duplicated(duplicate, tab.brought, outputs, **EVENT)
    tab.board.downloaded(download, None, tab.board, **EVENT)


def zip_checkpoint(run: RunFolder, milestone: int) -> Path:
    """Return a new zip of a checkpoint's files, without the training state."""
    folder = run.checkpoint(milestone)
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    name = re.sub(r"[^\w.-]+", "-", f"{run.name}-{folder.name}")
    path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{name}.zip"  # the random name is the permission
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:  # uncompressed: weights would not get smaller
        for file in files:
            archive.write(file, f"{name}/{file.name}")
    return path


def wire_opening(tab: Tab, engine: Engine, tabs: gr.Tabs, panels: Mapping[str, Panel]) -> None:
    """Open a checkpoint of a run in another tab."""

    def open_in(request: gr.Request, event: gr.EventData) -> Updates:
        permitted(request)
        try:
            path = run_of(event.run).checkpoint(int(event.checkpoint)).resolve()
            name = next(entry.name for entry in page_values.visible_checkpoints(engine) if entry.path.resolve() == path)
            updates = panels[event.tab].select(name)
        except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            raise page_values.user_error(error) from None
        except StopIteration:
            raise page_values.user_error("this checkpoint no longer exists") from None
        return {tabs: gr.Tabs(selected=event.tab)} | updates

    outputs = [tabs, *(one for panel in panels.values() for one in panel.selected)]
    tab.board.opened(open_in, None, outputs, **EVENT)


def permitted(request: gr.Request) -> None:
    if reason := permission.denial_reason(request):
        raise page_values.user_error(reason)


def forget(reference: str) -> None:
    """Delete the draft that a page refers to, if it is one."""
    with suppress(ValueError):
        Draft(reference).delete()


def uploaded(reference: str) -> dict[str, Any]:
    """Return the checked images that a page refers to: the `path` of their dataset, its name (`dataset`), their `size`
    and `count`. Raises ValueError if there are none.
    """
    if reference.startswith(OF_RUN):
        return images_of(run_of(reference.removeprefix(OF_RUN)))
    if not reference:
        raise ValueError("Upload images first: a zip, a folder or files.")
    draft = Draft(reference)
    facts = draft.facts()
    if "size" not in facts:
        raise ValueError("These images are still being checked. Try again when their report is shown.")
    return facts | {"path": draft.dataset}


def called(names: list[str]) -> str:
    """Return a name for images that came as files of these names: that of their archive or folder."""
    first = PurePath(names[0].replace("\\", "/")) if names else PurePath("pictures")
    text = first.parts[0] if len(first.parts) > 1 else archive_kinds.stem(first.name) or "pictures"
    return "".join(c for c in text if c.isprintable())[:60] or "pictures"
