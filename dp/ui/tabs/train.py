"""The Train tab: upload images, choose how long to train, start training and watch it. Training runs in a process of
its own, and the page reads its run folder. The components in page order, then one function per concern that wires them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

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
from dp.ui.sampling.panel import QUIET, Given, Opening, Updates
from dp.ui.training import checkpoints, publish, remote_training
from dp.ui.training.access import check_permission
from dp.ui.training.form import Form, choices, suggests_classes
from dp.ui.training.time_estimate import BUSY, measure
from dp.ui.training.uploads import LIMITS, Upload, bundled_files, name_dataset

RUN_PREFIX = "run:"  # a reference to images is an upload's id, or this and the id of a run
CUSTOM_SETTINGS = "Custom settings. To time them, press *How long will this take?* in the advanced settings."
START, CHOOSE_FIRST = "Start training", "Choose images to start"  # labels of the button
RECORDING = "training.json"  # in the folder of a bundled model
MEASURING, WAITING = "measuring…", "waiting"
EVENT = QUIET | {"concurrency_limit": None}


@dataclass(frozen=True)
class Tab:
    """The tab's components.

    reference: refers to the images that the page shows. It is not a gr.State, since anybody can evict those by
    inventing sessions. times: the estimated times of the presets, as texts.
    """

    denied: gr.Markdown
    content: gr.Column
    intake: ImageUpload
    form: Form
    start: gr.Button
    rent: gr.Button
    note: gr.Markdown
    board: RunBoard
    reference: gr.Textbox
    times: gr.State

    @property
    def images(self) -> list[Component]:
        """Return the outputs of `show_images`."""
        return [self.intake, self.reference, self.start, self.rent, self.form.classes]

    @property
    def cleared(self) -> list[Component]:
        """Return the outputs of `clear`."""
        return [*self.images, self.form.preset, self.note]

    @property
    def inputs(self) -> set[Component]:
        """Return the inputs of the buttons that create a run."""
        return {self.reference, self.times, *self.form.controls.values()}

    def show_images(
        self, shown: dict[str, Any], reference: str, can_start: bool = False, classes: bool | None = None
    ) -> Updates:
        """Show a value of the upload component, and remember which images it is about. classes: whether to learn their
        class folders, None if they have none.
        """
        button = gr.update(interactive=can_start)
        start = gr.update(interactive=can_start, value=START if can_start else CHOOSE_FIRST)
        checkbox = gr.update(value=bool(classes), visible=classes is not None)
        return {
            self.intake: shown,
            self.reference: reference,
            self.start: start,
            self.rent: button,
            self.form.classes: checkbox,
        }

    def preset_updates(self, given: Given) -> Updates:
        """Select the preset that the settings are equal to, if any, and explain others."""
        preset = self.form.preset_of(given)
        return {self.form.preset: preset, self.note: "" if preset else CUSTOM_SETTINGS}

    def clear(self, times: Mapping[str, str]) -> Updates:
        """Show the form without images. The presets keep their times."""
        updates = self.show_images({"state": "empty"}, "")
        return updates | {self.form.preset: gr.update(choices=choices(times)), self.note: ""}


def build(page: gr.Blocks, engine: Engine, tabs: gr.Tabs, openings: Mapping[str, Opening]) -> None:
    """Add the tab to the page being built. openings: how other tabs open a checkpoint, by their ids."""
    tab = components(list(openings), engine)
    wire_access(page, tab)
    checks = wire_checks(tab)
    benchmarks = wire_estimates(tab, checks)
    wire_removal(tab, [*checks, *benchmarks])
    wire_form(tab)
    wire_start(tab, benchmarks)
    wire_duplication(tab)
    checkpoints.wire_download(tab.board)
    checkpoints.wire_opening(tab.board, engine, tabs, openings)


def components(tabs: list[str], engine: Engine) -> Tab:
    reason = permission.denial_reason()
    denied = gr.Markdown(reason or "", visible=reason is not None, elem_id="refused")
    if permission.needs_sign_in():
        gr.LoginButton(size="sm", min_width=120)
    entries = engine.checkpoints()
    with gr.Row(elem_classes="train"):
        with gr.Column(scale=2, min_width=300, elem_classes="form"):
            with gr.Column(visible=reason is None, elem_id="train") as content:
                intake = ImageUpload(bundled_files(entries, "images.zip"), elem_id="intake")
                form = Form()
                with gr.Row():
                    start = gr.Button(
                        CHOOSE_FIRST,
                        variant="primary",
                        size="lg",
                        elem_id="start-training",
                        interactive=False,
                        scale=3,
                    )
                    rent = gr.Button(
                        "Rent a machine", size="lg", elem_id="rent-training", interactive=False, min_width=200
                    )
                note = gr.Markdown(elem_id="note", elem_classes="about")
            words.explain(words.TRAIN)
        with gr.Column(scale=3, min_width=320):
            server_functions = [
                publish.offer,
                publish.publish,
                remote_training.machines,
                remote_training.price,
                remote_training.rent,
            ]
            server_functions += [remote_training.exchange, remote_training.end, remote_training.forget]
            recording = next(iter(bundled_files(entries, RECORDING).values()), None)
            board = RunBoard(tabs, server_functions, remote_training.EXCHANGE_S, recording, elem_id="board")
    reference = gr.Textbox("", visible=False, elem_id="image-reference")
    return Tab(denied, content, intake, form, start, rent, note, board, reference, gr.State({}))


def wire_access(page: gr.Blocks, tab: Tab) -> None:
    """Show the form, or the reason why this visitor may not train."""

    def on_load(request: gr.Request) -> Updates:
        reason = permission.denial_reason(request)
        shown = gr.update(value=reason or "", visible=reason is not None)
        return {tab.denied: shown, tab.content: gr.update(visible=reason is None)}

    page.load(on_load, None, [tab.denied, tab.content], **EVENT)


def wire_checks(tab: Tab) -> list[Dependency]:
    """Check images after their upload, and again when the image size changes. Returns the events."""
    size = tab.form.size

    def on_upload(request: gr.Request, event: gr.EventData, given: Given) -> Iterator[Updates]:
        check_permission(request)
        delete_upload(given[tab.reference])
        try:
            upload = Upload(event.upload)
            upload.save_metadata({"files": event.files})
        except (ValueError, OSError) as error:  # if the page has removed the images meanwhile, it ignores this
            yield tab.show_images({"state": "empty", "message": message_of(error), "upload": event.upload}, "")
            return
        yield from check_images(tab, upload, given[size])

    def resize(given: Given) -> Iterator[Updates]:
        with suppress(ValueError):  # no upload
            upload = Upload(given[tab.reference])
            if upload.metadata().get("size") != given[size]:
                yield from check_images(tab, upload, given[size])
                return
        yield gr.skip()

    inputs = {tab.reference, size}
    first = tab.intake.uploaded(on_upload, inputs, tab.images, **EVENT)
    # Only one check runs at a time: a new size cancels the check of the upload, and waits for a check of a previous
    # size.
    second = size.change(resize, inputs, tab.images, cancels=[first], trigger_mode="always_last", **EVENT)
    return [first, second]


def check_images(tab: Tab, upload: Upload, image_size: Any) -> Iterator[Updates]:
    """Check and decode the uploaded images, and show the progress."""
    about = {"upload": upload.id}
    try:
        if image_size not in SIZES:
            raise ValueError(f"Image size must be one of {', '.join(map(str, SIZES))}, got {quote(image_size)}")
        metadata = {"files": upload.metadata().get("files")}
        names = upload.file_names(metadata["files"])
        metadata["dataset"] = name_dataset(names)
        upload.save_metadata(metadata)
        steps = prepare(upload.file_paths(names), upload.dataset, image_size, names=names, limits=LIMITS)
        with closing(steps):
            for progress in steps:
                shown = {"state": "checking"} | progress._asdict() | {"report": None} | about
                yield tab.show_images(shown, upload.id)
                Upload(upload.id)  # raises if the page has removed the images, but could not cancel this check
        report = progress.report
        shown = value_of_report(report, upload.dataset) | about
        found = {"size": image_size, "count": len(report.accepted), "classes": report.classes}
        upload.save_metadata(metadata | found)
        yield tab.show_images(shown, upload.id, can_start=True, classes=suggests_classes(report))
    except (ValueError, OSError) as error:
        yield tab.show_images({"state": "empty", "message": message_of(error)} | about, "")
    finally:
        upload.delete_leftovers()


def wire_estimates(tab: Tab, checks: Sequence[Dependency]) -> list[Dependency]:
    """Estimate the presets' times after each check, and that of custom settings on request. Returns the events."""

    async def measure_presets(request: gr.Request, given: Given) -> AsyncIterator[Updates]:
        check_permission(request)
        times = {name: text for name, text in given[tab.times].items() if text != BUSY}
        try:
            dataset = find_images(given[tab.reference])["path"]
        except ValueError:  # no images to measure with
            yield {tab.times: given[tab.times]}
            return
        for name in [name for name in PRESETS if name not in times]:
            labels = choices(dict.fromkeys(PRESETS, WAITING) | times | {name: MEASURING})
            yield {tab.form.preset: gr.update(choices=labels), tab.times: times}
            async with aclosing(measure(dataset, PRESETS[name])) as benchmark:
                async for estimate in benchmark:
                    times = times | ({name: estimate.text} if estimate else {})
                    yield {tab.times: times}  # so that Gradio notices a closed page
        yield {tab.form.preset: gr.update(choices=choices(times)), tab.times: times}

    async def measure_custom(request: gr.Request, given: Given) -> AsyncIterator[Updates]:
        check_permission(request)
        try:
            settings = tab.form.settings(given)
            dataset = find_images(given[tab.reference])["path"]
        except ValueError as error:
            raise page_values.user_error(error) from None
        async with aclosing(measure(dataset, settings)) as benchmark:
            async for estimate in benchmark:
                yield {tab.note: f"{settings.steps:,} steps: {estimate.text if estimate else MEASURING}"}

    outputs = [tab.form.preset, tab.times]
    benchmarks = [done.then(measure_presets, {tab.reference, tab.times}, outputs, **EVENT) for done in checks]
    inputs = {tab.reference, *tab.form.controls.values()}
    return [*benchmarks, tab.form.measure.click(measure_custom, inputs, tab.note, **EVENT)]


def wire_removal(tab: Tab, events: list[Dependency]) -> None:
    """Delete the images when their upload is cancelled or removed, and cancel the events that use them."""

    def remove(event: gr.EventData, given: Given) -> Updates:
        delete_upload(event.upload)
        delete_upload(given[tab.reference])
        return tab.clear(given[tab.times])

    for event in (tab.intake.canceled, tab.intake.removed):
        event(remove, {tab.reference, tab.times}, tab.cleared, cancels=events, **EVENT)


def wire_form(tab: Tab) -> None:
    """Apply presets. Of other settings no preset is selected, and the note below the form explains that."""

    def choose(name: str) -> Updates:
        return tab.form.updates(PRESETS[name]) | {tab.note: ""}

    tab.form.preset.input(choose, tab.form.preset, [*tab.form.preset_controls, tab.note], **EVENT)
    controls, outputs = tab.form.preset_controls, [tab.form.preset, tab.note]
    for control in controls:
        control.input(tab.preset_updates, set(controls), outputs, trigger_mode="always_last", **EVENT)


def wire_start(tab: Tab, benchmarks: list[Dependency]) -> None:
    """Start training on this machine, or open the form for renting one."""

    def start(request: gr.Request, given: Given) -> Updates:
        run = create_run(request, tab, given)
        try:
            processes.start(run)
        except (ValueError, OSError) as error:
            raise page_values.user_error(error) from None
        return tab.clear(given[tab.times]) | {tab.board: {"show": run.id}, tab.form.name: ""}

    def rent(request: gr.Request, given: Given) -> Updates:
        run = create_run(request, tab, given)
        return tab.clear(given[tab.times]) | {tab.board: {"show": run.id, "rent": True}, tab.form.name: ""}

    outputs = [tab.board, *tab.cleared, tab.form.name]
    for button, handler in ((tab.start, start), (tab.rent, rent)):
        button.click(handler, tab.inputs, outputs, cancels=benchmarks, **EVENT)


def create_run(request: gr.Request, tab: Tab, given: Given) -> RunFolder:
    """Create a run from the form and the page's images, and delete their upload. Raises gr.Error."""
    check_permission(request)
    reference = given[tab.reference]
    try:
        settings, images = tab.form.settings(given), find_images(reference)
        if (side := images["size"]) != settings.image_size:
            raise ValueError(f"these images were prepared at {side} × {side}: upload them again to use another size")
        config = settings.config(images["dataset"], images["count"], time.time(), images.get("classes", ()))
        config["name"] = free_name(config["name"])
        if reference.startswith(RUN_PREFIX):
            return processes.duplicate(run_of(reference.removeprefix(RUN_PREFIX)), runs_dir(), **config)
        run = processes.create(runs_dir(), config, images["path"])
    except (ValueError, OSError) as error:
        raise page_values.user_error(error) from None
    delete_upload(reference)
    return run


def wire_duplication(tab: Tab) -> None:
    """Show the images and the settings of a run in the form, to start it anew."""

    def duplicate(request: gr.Request, event: gr.EventData, reference: str) -> Updates:
        check_permission(request)
        try:
            run = run_of(event.run)
            shown, settings = value_of_run(run)
        except (ValueError, OSError) as error:
            raise page_values.user_error(error) from None
        delete_upload(reference)
        classes = settings.classes if images_of(run)["classes"] else None
        images = tab.show_images(shown, RUN_PREFIX + run.id, can_start=True, classes=classes)
        chosen = tab.form.updates(settings)
        return images | chosen | tab.preset_updates(chosen) | {tab.form.name: free_name(run.name)}

    outputs = [*tab.images, tab.form.preset, tab.note, *tab.form.controls.values()]
    tab.board.duplicated(duplicate, tab.reference, outputs, **EVENT)


def delete_upload(reference: str) -> None:
    """Delete the upload that a page refers to. A run keeps its images."""
    with suppress(ValueError):
        Upload(reference).delete()


def find_images(reference: str) -> dict[str, Any]:
    """Return the checked images that a page refers to, as a dict: the `path` of their dataset, its name (`dataset`),
    the image `size` and the image `count`. Raises ValueError if there are none.
    """
    if reference.startswith(RUN_PREFIX):
        return images_of(run_of(reference.removeprefix(RUN_PREFIX)))
    if not reference:
        raise ValueError("there are no images: upload a zip, a folder or files first")
    upload = Upload(reference)
    metadata = upload.metadata()
    if "size" not in metadata:
        raise ValueError("these images are still being checked: try again when their report is shown")
    return metadata | {"path": upload.dataset}
