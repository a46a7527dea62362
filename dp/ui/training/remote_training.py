"""A run on a rented machine, a Job on the Hugging Face Hub: what the board's form and its news ask of the server.
Anybody may call these functions with anything.

They come as functions of the board's component and not as events, for the reason that dp.ui.training.publish gives: a
token goes with the call that it is given to, from a variable of the page, and nothing here keeps it or writes it down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from dp.hub.client import Refused
from dp.system.validation import message_of
from dp.training.remote import job
from dp.training.remote.hardware import (
    DEFAULT_FLAVOR,
    DEFAULT_TIMEOUT,
    describe_price,
    format_duration,
    list_hardware,
    parse_duration,
)
from dp.training.remote.job import REPORT_S
from dp.training.run_folder import RunFolder
from dp.ui.auth import permission
from dp.ui.components.run_board.run_board import run_of

EXCHANGE_S = 15  # from one exchange of news to the page's next
ODD = {"problem": "malformed request"}


def machines(asked: Any, request: gr.Request) -> dict[str, Any]:
    """What the form begins with: `machines`, pairs of a flavor and words for it, the `flavor` and `timeout` to be
    chosen at first, and whether there is a `login`. Prices are public: no token goes along.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        found = list_hardware(token=False)
    except ValueError as error:
        return {"problem": message_of(error)}
    prices = {name: f"${cost:.2f} an hour · " if cost is not None else "" for name, (_, cost) in found.items()}
    offers = [[name, f"{name} · {prices[name]}{words}"] for name, (words, _) in found.items()]
    flavor = DEFAULT_FLAVOR if DEFAULT_FLAVOR in found else next(iter(found), "")
    offered = {"machines": offers, "flavor": flavor, "timeout": DEFAULT_TIMEOUT}
    return offered | {"login": permission.has_login(request)} | permission.hint(request)


def price(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Return the price of a machine of `flavor` for a `timeout`, in `words`."""
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        return {"words": describe_price(asked["flavor"], asked["timeout"].strip(), token=False)}
    except (KeyError, TypeError, AttributeError):
        return ODD
    except ValueError as error:
        return {"problem": message_of(error)}


def rent(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Start the run `run` as a Job on a machine of `flavor`, for `timeout` at most; {} when the Hub has taken it."""

    def start(run: RunFolder, token: str | bool | None) -> None:
        left_s = permission.seconds_signed_in(request)
        if not asked["token"].strip() and left_s < parse_duration(timeout):
            words = "and the job could not report after that: choose a shorter time limit or enter a token"
            raise Refused(f"your sign-in on this page expires in {format_duration(max(left_s, 0))}, {words}")
        job.start(run, flavor, timeout, token, every=REPORT_S)

    try:
        flavor, timeout = asked["flavor"].strip(), asked["timeout"].strip()
    except (KeyError, TypeError, AttributeError):
        return ODD
    return done(start, asked, request)


def exchange(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Hand over what the run `run` was asked, and bring back what has come of it; the board then finds it on disk."""
    return done(job.refresh, asked, request)


def end(asked: Any, request: gr.Request) -> dict[str, Any]:
    """End the Job of the run `run`, unsaved."""
    return done(job.cancel, asked, request)


def forget(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Delete the repository that the Job of the run `run` has left."""
    return done(job.delete_repository, asked, request)


def done(what: Callable[[RunFolder, str | bool | None], Any], asked: Any, request: gr.Request) -> dict[str, Any]:
    """Do that to the run `run`: {}, or a `problem`, and `asks` where there is no token, or another one may do. token:
    that of the call, over the visitor's own sign-in, over this machine's login at home.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run, token = run_of(asked["run"]), asked["token"].strip()
    except (KeyError, TypeError, AttributeError):
        return ODD
    except ValueError as error:
        return {"problem": message_of(error)}
    if not (token or permission.has_login(request)):
        return {"problem": "a token is required", "asks": True}
    try:
        what(run, token or permission.token_of(request))
    except Refused as error:
        return {"problem": message_of(error), "asks": True}
    except (ValueError, OSError) as error:
        return {"problem": message_of(error)}
    return {}
