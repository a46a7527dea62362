"""A run's network, published on the Hugging Face Hub: what the form on the board asks of the server. Anybody may call
these functions with anything.

A token that is typed goes with the one call that it was typed for. It does not come by an event, whose values Gradio
keeps in a queue, but by a function of the board's component, and nothing here keeps it or writes it down.
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


def offer(asked: Any, request: gr.Request) -> dict[str, Any]:
    """What the form for publishing the run `run` begins with: `repo`, a name on the Hub without its `owner` where that
    is not known, and whether there is a `login`.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run = run_of(asked["run"])
    except (KeyError, TypeError, ValueError):
        return {"problem": "this run no longer exists"}
    owner = permission.user_of(request) if permission.token_of(request) else None
    return {"owner": owner, "repo": slug(run.name), "login": permission.has_login(request)} | permission.hint(request)


def publish(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Publish the `milestone` of the run `run` as `repo`, `private` or not, with its `licence`: the `url`, or a
    `problem`. token: that of the call, over the visitor's own sign-in, over this machine's login at home.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run, milestone, repo = run_of(asked["run"]), int(asked["milestone"]), asked["repo"].strip()
        token, licence = asked["token"].strip() or permission.token_of(request), plain(asked["licence"])
        terms = {"private": bool(asked["private"])} | ({"license": licence} if licence else {})
    except (KeyError, TypeError, AttributeError, OverflowError):
        return {"problem": "malformed request"}
    except ValueError as error:
        return {"problem": message_of(error)}
    folder = run.checkpoint(milestone)
    try:
        return {
            "url": models.push(folder, repo, token=token, samples=samples(run, milestone), facts=facts(run), **terms)
        }
    except (ValueError, OSError) as error:
        return {"problem": readable(message_of(error)).replace(readable(str(folder)), f"step {milestone:,}")}


def samples(run: RunFolder, milestone: int) -> Path | None:
    """The newest picture of samples that is not newer than the milestone."""
    steps = [step for step in run.sample_steps() if step <= milestone]
    return run.sample(steps[-1]) if steps else None


def facts(run: RunFolder) -> dict[str, str]:
    """Return the card's sentence on the training images: their number and sizes, and none of their names."""
    try:
        *said, expect = DatasetReport.load(run.dataset).summary_lines()
    except (OSError, ValueError):  # no report, as in the run of a library's user
        return {}
    return {"pictures": " ".join(said), "what to expect": expect}
