"""The Train tab: bring pictures, choose how long, press Start, watch. What trains is a process of its own, which the
page sees by its run folder alone. First the components, in the order of the page; then all wiring.
"""

from __future__ import annotations

import re
import secrets
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing, suppress
from pathlib import Path, PurePath
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dp.data.archives import archive_kinds
from dp.data.prepare import prepare
from dp.serving.engine import Engine
from dp.system.validation import message_of, quote
from dp.training import processes
from dp.training.presets import PRESETS, SIZES, Settings
from dp.training.run_folder import RunFolder, home
from dp.ui import words
from dp.ui.auth import permission
from dp.ui.components.run_board.run_board import Board, free_name, run_of
from dp.ui.components.upload.upload import Intake, brought_by, checked, images_of
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import Panel, Updates
from dp.ui.training import publish, remote_training
from dp.ui.training.form import Form, choices
from dp.ui.training.time_estimate import measured
from dp.ui.training.uploads import LIMITS, Draft

OF_RUN = "run:"  # before a run's id in a page's reference to its images; a draft's id stands alone
OWN = "Settings of your own. *How long will this take?* in the advanced settings measures them."
MEASURING = "measuring…"


def build(page: gr.Blocks, engine: Engine, tabs: gr.Tabs, panels: Mapping[str, Panel]) -> None:
    """Add the tab to the page being built. panels: the sampling controls of the other tabs, by the tabs' ids, in which
    a milestone can be opened.
    """
    why_not = permission.refusal()
    refused = gr.Markdown(why_not or "", visible=why_not is not None, elem_id="refused")
    if permission.must_sign_in():
        gr.LoginButton(size="sm", min_width=120)
    with gr.Row(visible=why_not is None, elem_classes="train", elem_id="train") as inside:
        with gr.Column(scale=2, min_width=300):
            intake = Intake(elem_id="intake")
            form = Form()
            with gr.Row():
                start = gr.Button(
                    "Start training", variant="primary", size="lg", elem_id="start-training", interactive=False, scale=3
                )
                hire = gr.Button("Rent a machine", size="lg", elem_id="rent-training", interactive=False, min_width=200)
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
            board = Board(list(panels), served, remote_training.EXCHANGE_S, elem_id="board")
    words.explain(words.TRAIN)

    # ------------------------------------------------------------------------
    # Wiring

    # Which images the page is about: a reference and no gr.State, which anybody could evict by inventing sessions.
    brought = gr.Textbox("", visible=False, elem_id="brought")
    times = gr.State({})  # of the presets, in words
    preset, size = form.preset, form.size

    def welcome(request: gr.Request) -> tuple[Any, Any]:
        why_not = permission.refusal(request)
        return gr.update(value=why_not or "", visible=why_not is not None), gr.update(visible=why_not is None)

    def check(draft: Draft, image_size: Any) -> Iterator[tuple[Any, ...]]:
        """Yield values of `state` while a draft's images are checked and decoded."""
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
                    yield shown, draft.id, *startable(False)
                    Draft(draft.id)  # the page may have left it, before it knew of this check and could cancel it
            shown = checked(progress.report, draft.dataset) | whose
            draft.keep(facts | {"size": image_size, "count": len(progress.report.used)})
            yield shown, draft.id, *startable(True)
        except (ValueError, OSError) as error:
            yield {"state": "empty", "message": message_of(error)} | whose, "", *startable(False)
        finally:
            draft.delete_remains()

    def arrive(request: gr.Request, event: gr.EventData, reference: str, image_size: Any):
        permitted(request)
        forget(reference)
        try:
            draft = Draft(event.draft)
            draft.keep({"files": event.files})
        except (ValueError, OSError) as error:  # the page may have left it already, and then does not listen
            yield {"state": "empty", "message": message_of(error), "draft": event.draft}, "", *startable(False)
            return
        yield from check(draft, image_size)

    def resize(reference: str, image_size: Any):
        with suppress(ValueError):  # no draft
            draft = Draft(reference)
            if draft.facts().get("size") != image_size:
                yield from check(draft, image_size)
                return
        yield (gr.skip(),) * len(state)

    def forget(reference: str) -> None:
        with suppress(ValueError):
            Draft(reference).delete()

    def empty(reference: str, times: dict[str, str]) -> tuple[Any, ...]:
        forget(reference)
        return {"state": "empty"}, "", *startable(False), gr.update(choices=choices(times)), ""

    def leave(event: gr.EventData, reference: str, times: dict[str, str]) -> tuple[Any, ...]:
        forget(event.draft)
        return empty(reference, times)

    async def measure_presets(request: gr.Request, reference: str, times: dict[str, str]) -> AsyncIterator[Any]:
        """The time that each preset takes, one after the other."""
        permitted(request)
        try:
            dataset = uploaded(reference)["path"]
        except ValueError:  # nothing there to measure with
            yield gr.skip(), times
            return
        for name in [name for name in PRESETS if name not in times]:
            yield gr.update(choices=choices(dict.fromkeys(PRESETS, MEASURING) | times)), times
            async with aclosing(measured(dataset, PRESETS[name])) as trial:
                async for found in trial:
                    times = times | ({name: found.words} if found else {})
                    yield gr.skip(), times  # a page that has gone is noticed here
        yield gr.update(choices=choices(times)), times

    async def measure_own(request: gr.Request, reference: str, *values: Any) -> AsyncIterator[str]:
        permitted(request)
        settings = settings_from(values)
        try:
            dataset = uploaded(reference)["path"]
        except ValueError as error:
            raise page_values.complaint(error) from None
        async with aclosing(measured(dataset, settings)) as trial:
            async for found in trial:
                yield f"{settings.steps:,} steps: {found.words if found else MEASURING}"

    def created(request: gr.Request, reference: str, values: tuple[Any, ...]) -> RunFolder:
        permitted(request)
        settings = settings_from(values)
        try:
            images = uploaded(reference)
            if (side := images["size"]) != settings.image_size:
                raise ValueError(f"These images were prepared at {side} × {side}: upload them again for another size.")
            config = settings.config(images["dataset"], images["count"], time.time())
            config["name"] = free_name(config["name"])
            if reference.startswith(OF_RUN):
                return processes.duplicate(run_of(reference.removeprefix(OF_RUN)), home(), **config)
            run = processes.create(home(), config, images["path"])
        except (ValueError, OSError) as error:
            raise page_values.complaint(error) from None
        forget(reference)
        return run

    def begin(request: gr.Request, reference: str, times: dict[str, str], *values: Any) -> tuple[Any, ...]:
        run = created(request, reference, values)
        try:
            processes.start(run)
        except (ValueError, OSError) as error:
            raise page_values.complaint(error) from None
        return {"show": run.id}, *empty("", times), ""

    def begin_elsewhere(request: gr.Request, reference: str, times: dict[str, str], *values: Any):
        """A run for the board's form, in which it is started."""
        run = created(request, reference, values)
        return {"show": run.id, "rent": True}, *empty("", times), ""

    def duplicate(request: gr.Request, event: gr.EventData, reference: str) -> tuple[Any, ...]:
        """The form as it was for a run, and its pictures."""
        permitted(request)
        try:
            run = run_of(event.run)
            shown, settings = brought_by(run)
        except (ValueError, OSError) as error:
            raise page_values.complaint(error) from None
        forget(reference)
        return shown, OF_RUN + run.id, *startable(True), OWN, free_name(run.name), *form.set(settings)

    def download(request: gr.Request, event: gr.EventData) -> dict[str, Any]:
        """A checkpoint's folder as a zip, without what only resuming needs."""
        permitted(request)
        try:
            run = run_of(event.run)
            folder = run.checkpoint(int(event.milestone))
            files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise page_values.complaint(error) from None
        name = re.sub(r"[^\w.-]+", "-", f"{run.name}-{folder.name}")
        path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{name}.zip"  # whoever knows it may have it
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as archive:  # weights do not get smaller by packing
            for file in files:
                archive.write(file, f"{name}/{file.name}")
        return {"file": gr.FileData(path=str(path), orig_name=path.name).model_dump()}

    def open_in(request: gr.Request, event: gr.EventData) -> Updates:
        """Open another tab with a checkpoint of a run chosen in it."""
        permitted(request)
        try:
            path = run_of(event.run).checkpoint(int(event.milestone)).resolve()
            name = next(entry.name for entry in page_values.entries(engine) if entry.path.resolve() == path)
            updates = panels[event.tab].select(name)
        except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            raise page_values.complaint(error) from None
        except StopIteration:
            raise page_values.complaint("this checkpoint is no longer there") from None
        return {tabs: gr.Tabs(selected=event.tab)} | updates

    quiet = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    page.load(welcome, None, [refused, inside], **quiet)
    state = [intake, brought, start, hire]
    checks = [intake.brought(arrive, [brought, size], state, **quiet)]
    # One check at a time: a new size ends the one under way, and waits for one of its own kind.
    checks.append(size.change(resize, [brought, size], state, cancels=checks, trigger_mode="always_last", **quiet))
    trials = [done.then(measure_presets, [brought, times], [preset, times], **quiet) for done in checks]
    trials.append(form.measure.click(measure_own, [brought, *form.values], note, **quiet))
    for stopping in (intake.cancelled, intake.emptied):
        stopping(leave, [brought, times], [*state, preset, note], cancels=[*checks, *trials], **quiet)
    preset.input(lambda name: (*form.set(PRESETS[name]), ""), preset, [*form.values[1:], note], **quiet)
    for control in form.values[1:]:
        control.input(lambda: OWN, None, note, **quiet)
    shown = [board, *state, preset, note, form.name]
    for button, what in ((start, begin), (hire, begin_elsewhere)):
        button.click(what, [brought, times, *form.values], shown, cancels=trials, **quiet)
    board.duplicated(duplicate, brought, [*state, note, *form.values], **quiet)
    board.downloaded(download, None, board, **quiet)
    board.opened(open_in, None, [tabs, *(one for panel in panels.values() for one in panel.selected)], **quiet)


def startable(is_so: bool) -> tuple[Any, Any]:
    """Values of the two buttons that begin a run."""
    return (gr.update(interactive=is_so),) * 2


def permitted(request: gr.Request) -> None:
    if why_not := permission.refusal(request):
        raise page_values.complaint(why_not)


def settings_from(values: tuple[Any, ...]) -> Settings:
    try:
        return Settings(*values)
    except ValueError as error:
        raise page_values.complaint(error) from None


def uploaded(reference: str) -> dict[str, Any]:
    """Return the checked images that a page refers to: the `path` of their dataset, what to call it (`dataset`), their
    `size` and `count`. Raises ValueError where there are none.
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
    """Return what to call images that came as files of these names: the name of their archive or folder."""
    first = PurePath(names[0].replace("\\", "/")) if names else PurePath("pictures")
    text = first.parts[0] if len(first.parts) > 1 else archive_kinds.stem(first.name) or "pictures"
    return "".join(c for c in text if c.isprintable())[:60] or "pictures"
