"""The Train tab: bring pictures, choose how long, press Start, watch. What trains is a process of its own, which the
page sees by its run folder alone. First the components, in the order of the page; then all wiring.
"""

from __future__ import annotations

import re
import secrets
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path, PurePath
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dp import jobs
from dp.engine import Engine
from dp.findings import Findings
from dp.intake import prepare
from dp.recipe import PRESETS, SIZES, Settings
from dp.runs import RunFolder, home
from dp.ui import controls, permission, publish, rent, words
from dp.ui.panel import Panel
from dp.ui.training.board import Board, free_name, run_of
from dp.ui.training.drafts import LIMITS, Draft
from dp.ui.training.intake import Intake, checked
from dp.ui.training.measure import measured
from dp.ui.training.settings import Form, choices

NOTHING: dict[str, Any] = {}  # brought yet; else `dataset`, what it is called, and `draft` and `names`, or `run`
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
            served = [publish.offer, publish.publish, rent.machines, rent.price, rent.rent]
            served += [rent.exchange, rent.end, rent.forget]
            board = Board(list(panels), served, rent.EXCHANGE_S, elem_id="board")
    words.explain(words.TRAIN)

    # ------------------------------------------------------------------------
    # Wiring

    brought = gr.State(NOTHING)
    times = gr.State({})  # of the presets, in words
    preset, size = form.preset, form.size

    def welcome(request: gr.Request) -> tuple[Any, Any]:
        why_not = permission.refusal(request)
        return gr.update(value=why_not or "", visible=why_not is not None), gr.update(visible=why_not is None)

    def check(given: dict[str, Any], image_size: Any) -> Iterator[tuple[Any, ...]]:
        """Values of `state`, while the pictures are looked at and decoded."""
        given, whose = given | {"size": None}, {"draft": given.get("draft")}
        try:
            if image_size not in SIZES:
                raise ValueError(f"Image size must be one of {', '.join(map(str, SIZES))}")
            draft, names = Draft(given["draft"]), given["names"]
            for progress in prepare(draft.sources(names), draft.dataset, image_size, names=names, limits=LIMITS):
                yield {"state": "checking"} | progress._asdict() | {"report": None} | whose, given, *startable(False)
                Draft(draft.id)  # the page may have left it, before it knew of this check and could cancel it
            shown = checked(progress.report, draft.dataset) | whose
            yield shown, given | {"size": image_size, "count": len(progress.report.used)}, *startable(True)
        except (ValueError, OSError) as error:
            yield {"state": "empty", "message": str(error)} | whose, NOTHING, *startable(False)

    def arrive(request: gr.Request, event: gr.EventData, given: dict[str, Any], image_size: Any):
        permitted(request)
        names = [str(name) for name in event.names]
        forget(given)
        given = {"draft": event.draft, "names": names, "dataset": called(names)}
        yield from check(given, image_size)

    def resize(given: dict[str, Any], image_size: Any):
        if given.get("draft") and given.get("size") != image_size:
            yield from check(given, image_size)
        else:
            yield (gr.skip(),) * len(state)

    def forget(given: dict[str, Any]) -> None:
        with suppress(ValueError):
            Draft(given.get("draft")).delete()

    def empty(given: dict[str, Any], times: dict[str, str]) -> tuple[Any, ...]:
        forget(given)
        return {"state": "empty"}, NOTHING, *startable(False), gr.update(choices=choices(times)), ""

    def leave(event: gr.EventData, given: dict[str, Any], times: dict[str, str]) -> tuple[Any, ...]:
        forget({"draft": event.draft})
        return empty(given, times)

    async def measure_presets(request: gr.Request, given: dict[str, Any], times: dict[str, str]) -> AsyncIterator[Any]:
        """The time that each preset takes, one after the other."""
        permitted(request)
        if not given.get("size"):
            yield gr.skip(), times
            return
        for name in [name for name in PRESETS if name not in times]:
            yield gr.update(choices=choices(dict.fromkeys(PRESETS, MEASURING) | times)), times
            async with aclosing(measured(dataset_of(given), PRESETS[name])) as trial:
                async for found in trial:
                    times = times | ({name: found.words} if found else {})
                    yield gr.skip(), times  # a page that has gone is noticed here
        yield gr.update(choices=choices(times)), times

    async def measure_own(request: gr.Request, given: dict[str, Any], *values: Any) -> AsyncIterator[str]:
        permitted(request)
        if not given.get("size"):
            raise controls.complaint("Bring pictures first.")
        settings = settings_from(values)
        async with aclosing(measured(dataset_of(given), settings)) as trial:
            async for found in trial:
                yield f"{settings.steps:,} steps: {found.words if found else MEASURING}"

    def created(request: gr.Request, given: dict[str, Any], values: tuple[Any, ...]) -> RunFolder:
        permitted(request)
        settings = settings_from(values)
        if not given.get("size"):
            raise controls.complaint("Bring pictures first: a zip, a folder or files.")
        if given["size"] != settings.image_size:
            side = given["size"]
            raise controls.complaint(f"These pictures are kept at {side} × {side}: bring them again for another size.")
        try:
            config = settings.config(given["dataset"], given["count"], time.time())
            config["name"] = free_name(config["name"])
            if "run" in given:
                return jobs.duplicate(run_of(given["run"]), home(), **config)
            run = jobs.create(home(), config, Draft(given["draft"]).dataset)
        except (ValueError, OSError) as error:
            raise controls.complaint(error) from None
        forget(given)
        return run

    def begin(request: gr.Request, given: dict[str, Any], times: dict[str, str], *values: Any) -> tuple[Any, ...]:
        run = created(request, given, values)
        try:
            jobs.start(run)
        except (ValueError, OSError) as error:
            raise controls.complaint(error) from None
        return {"show": run.id}, *empty(NOTHING, times), ""

    def begin_elsewhere(request: gr.Request, given: dict[str, Any], times: dict[str, str], *values: Any):
        """A run for the board's form, in which it is started."""
        run = created(request, given, values)
        return {"show": run.id, "rent": True}, *empty(NOTHING, times), ""

    def duplicate(request: gr.Request, event: gr.EventData, given: dict[str, Any]) -> tuple[Any, ...]:
        """The form as it was for a run, and its pictures."""
        permitted(request)
        try:
            run = run_of(event.run)
            config, settings = run.config(), Settings.of(run.config())
            shown = checked(Findings.load(run.dataset), run.dataset)
        except (ValueError, OSError) as error:
            raise controls.complaint(error) from None
        forget(given)
        dataset = config["dataset"]
        shown["sentences"] = [f"The pictures of {run.name}, again. Change what you like, and start."]
        given = {"run": run.id, "dataset": dataset["name"], "count": dataset["count"], "size": config["image_size"]}
        return shown, given, *startable(True), OWN, free_name(run.name), *form.set(settings)

    def download(request: gr.Request, event: gr.EventData) -> dict[str, Any]:
        """A checkpoint's folder as a zip, without what only resuming needs."""
        permitted(request)
        try:
            run = run_of(event.run)
            folder = run.checkpoint(int(event.milestone))
            files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        except (ValueError, TypeError, OSError) as error:
            raise controls.complaint(error) from None
        name = re.sub(r"[^\w.-]+", "-", f"{run.name}-{folder.name}")
        path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{name}.zip"  # whoever knows it may have it
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as archive:  # weights do not get smaller by packing
            for file in files:
                archive.write(file, f"{name}/{file.name}")
        return {"file": gr.FileData(path=str(path), orig_name=path.name).model_dump()}

    def open_in(request: gr.Request, event: gr.EventData) -> list[Any]:
        """A milestone, chosen in another tab, and that tab."""
        permitted(request)
        try:
            path = run_of(event.run).checkpoint(int(event.milestone)).resolve()
            name = next(entry.name for entry in controls.entries(engine) if entry.path.resolve() == path)
            shown = panels[event.tab].opened(name)
        except (ValueError, TypeError, KeyError) as error:
            raise controls.complaint(error) from None
        except StopIteration:
            raise controls.complaint("this checkpoint is no longer there") from None
        updates = [shown if tab == event.tab else (gr.skip(),) * len(panel.chosen) for tab, panel in panels.items()]
        return [gr.Tabs(selected=event.tab), *(update for of_panel in updates for update in of_panel)]

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
    board.opened(open_in, None, [tabs, *(one for panel in panels.values() for one in panel.chosen)], **quiet)


def startable(is_so: bool) -> tuple[Any, Any]:
    """Values of the two buttons that begin a run."""
    return (gr.update(interactive=is_so),) * 2


def permitted(request: gr.Request) -> None:
    if why_not := permission.refusal(request):
        raise controls.complaint(why_not)


def settings_from(values: tuple[Any, ...]) -> Settings:
    try:
        return Settings(*values)
    except ValueError as error:
        raise controls.complaint(error) from None


def dataset_of(given: Mapping[str, Any]) -> Path:
    return run_of(given["run"]).dataset if "run" in given else Draft(given["draft"]).dataset


def called(names: list[str]) -> str:
    """What to call pictures that came as files of these names: the zip's or the folder's name."""
    first = PurePath(names[0].replace("\\", "/")) if names else PurePath("pictures")
    text = first.parts[0] if len(first.parts) > 1 else first.stem if first.suffix.lower() == ".zip" else "pictures"
    return "".join(c for c in text if c.isprintable())[:60] or "pictures"
