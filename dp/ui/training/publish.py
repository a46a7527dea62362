"""Publish a run's model on the Hugging Face Hub: the server functions behind the board's form. Any visitor may call
them with any arguments.

A typed token is used for one call and never stored. It arrives through a server function of the board's component,
because Gradio keeps the values of events in a queue.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from dp.data.report import DatasetReport
from dp.hub import client, models, space
from dp.system.records import readable
from dp.system.text import plain
from dp.system.validation import message_of
from dp.training.processes import slug
from dp.training.run_folder import RunFolder
from dp.ui.auth import permission
from dp.ui.components.player.guard import OneAtATime
from dp.ui.components.run_board.run_board import run_of
from dp.ui.web.graph import load_onnx
from dp.ui.web.page import space_card
from dp.ui.web.process import export_in_process

ONE_EXPORT = OneAtATime()  # for all visitors


def offer(data: Any, request: gr.Request) -> dict[str, Any]:
    """Return the initial values of the form for the run `run`: the `owner` on the Hub (None if unknown), the name
    `repo` without it, whether there is a `login`, and a `hint` for the token field.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run = run_of(data["run"])
    except (KeyError, TypeError, ValueError):
        return {"problem": "this run no longer exists"}
    owner = permission.user_of(request) if permission.token_of(request) else None
    access = {"login": permission.has_login(request), "hint": permission.login_hint(request)}
    return {"owner": owner, "repo": slug(run.name)} | access


def publish(data: Any, request: gr.Request) -> dict[str, Any]:
    """Publish the checkpoint of step `checkpoint` of the run `run` as `repo`, `private` or not, with a `license`.
    With `page`, publish it also as a page that runs in the browser, a static Space of the same name. Return its `url`,
    and that of the `page`, or a `problem`. The token is the one typed, else `permission.token_of` the visitor.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run, step, repo = run_of(data["run"]), int(data["checkpoint"]), data["repo"].strip()
        token, license_id = data["token"].strip() or permission.token_of(request), plain(data["license"])
        terms = {"private": bool(data["private"])} | ({"license": license_id} if license_id else {})
        has_page = bool(data.get("page"))
    except (KeyError, TypeError, AttributeError, OverflowError):
        return {"problem": "malformed request"}
    except ValueError as error:
        return {"problem": message_of(error)}
    folder = run.checkpoint(step)
    about = {"samples": newest_samples(run, step), "facts": card_facts(run)}
    try:
        if has_page:
            load_onnx()  # without it, nothing is published
        url = models.upload(folder, repo, token=token, **about, **terms)
    except (ValueError, OSError) as error:
        return {"problem": readable(message_of(error)).replace(readable(str(folder)), f"step {step:,}")}
    return {"url": url} | (publish_page(folder, repo, token, terms) if has_page else {})


def publish_page(folder: Path, repo: str, token: str | bool | None, terms: dict[str, Any]) -> dict[str, str]:
    """Publish a checkpoint as a static Space, and return its address as `page`, or the `problem`. terms: whether it is
    `private`, and its `license`.
    """
    name = repo.split("/")[1]

    def make() -> dict[str, str]:
        with TemporaryDirectory(prefix="dp-", ignore_cleanup_errors=True) as home:
            export_in_process(folder, page := Path(home) / "page", name)
            (page / "README.md").write_text(space_card(name, terms), encoding="utf-8")
            return {"page": space.publish_static(page, repo, client.headers_for(repo, token), terms["private"])}

    made = ONE_EXPORT(make)
    return {"problem": f"the model is published, but not its page: {made['problem']}"} if "problem" in made else made


def newest_samples(run: RunFolder, step: int) -> Path | None:
    """Return the newest sample sheet that is not newer than `step`."""
    steps = [sampled for sampled in run.sample_steps() if sampled <= step]
    return run.sample(steps[-1]) if steps else None


def card_facts(run: RunFolder) -> dict[str, str]:
    """Return the model card's text about the training images: their number and sizes, but not their names."""
    try:
        *summary, expectation = DatasetReport.load(run.dataset).summary_lines()
    except (OSError, ValueError):  # no report: the run was created with the library
        return {}
    return {"pictures": " ".join(summary), "what to expect": expectation}
