"""Publish a run's model on the Hugging Face Hub: the server functions behind the board's form. Any visitor may call
them with any arguments.

A typed token is used for one call and never stored. It arrives through a server function of the board's component,
because Gradio keeps the values of events in a queue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from dp.data.report import DatasetReport
from dp.hub import models
from dp.system.records import readable
from dp.system.text import plain
from dp.system.validation import message_of
from dp.training.processes import slug
from dp.training.run_folder import RunFolder
from dp.ui.auth import permission
from dp.ui.components.run_board.run_board import run_of


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
    Return its `url` or a `problem`. The token is the one typed, else `permission.token_of` the visitor.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run, step, repo = run_of(data["run"]), int(data["checkpoint"]), data["repo"].strip()
        token, license_id = data["token"].strip() or permission.token_of(request), plain(data["license"])
        terms = {"private": bool(data["private"])} | ({"license": license_id} if license_id else {})
    except (KeyError, TypeError, AttributeError, OverflowError):
        return {"problem": "malformed request"}
    except ValueError as error:
        return {"problem": message_of(error)}
    folder = run.checkpoint(step)
    about = {"samples": newest_samples(run, step), "facts": card_facts(run)}
    try:
        return {"url": models.upload(folder, repo, token=token, **about, **terms)}
    except (ValueError, OSError) as error:
        return {"problem": readable(message_of(error)).replace(readable(str(folder)), f"step {step:,}")}


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
