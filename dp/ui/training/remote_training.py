"""Train a run on a rented machine, as a Job on the Hugging Face Hub: the server functions behind the board's form and
its updates. Any visitor may call them with any arguments.

They are server functions and not events, so that a token is used for one call and never stored; see
dp.ui.training.publish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from dp.hub.client import HubPermissionError
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

EXCHANGE_S = 15  # how often the page synchronizes a remote run
Action = Callable[[RunFolder, str | bool | None], Any]  # takes a run and a token
MALFORMED = {"problem": "malformed request"}


def machines(data: Any, request: gr.Request) -> dict[str, Any]:
    """Return the initial values of the form: `machines` as pairs (flavor, label), the default `flavor` and `timeout`,
    whether there is a `login`, and a `hint` for the token field. Prices are public, so the request uses no token.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        found = list_hardware(token=False)
    except ValueError as error:
        return {"problem": message_of(error)}
    prices = {name: f"${cost:.2f} an hour · " if cost is not None else "" for name, (_, cost) in found.items()}
    offers = [[name, f"{name} · {prices[name]}{label}"] for name, (label, _) in found.items()]
    flavor = DEFAULT_FLAVOR if DEFAULT_FLAVOR in found else next(iter(found), "")
    offered = {"machines": offers, "flavor": flavor, "timeout": DEFAULT_TIMEOUT}
    return offered | {"login": permission.has_login(request), "hint": permission.login_hint(request)}


def price(data: Any, request: gr.Request) -> dict[str, Any]:
    """Return a sentence on the price of a machine of `flavor` for the time limit `timeout`, as `words`."""
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        return {"words": describe_price(data["flavor"], data["timeout"].strip(), token=False)}
    except (KeyError, TypeError, AttributeError):
        return MALFORMED
    except ValueError as error:
        return {"problem": message_of(error)}


def rent(data: Any, request: gr.Request) -> dict[str, Any]:
    """Start the run `run` as a Job on a machine of `flavor` with the time limit `timeout`. Return {} once it is
    accepted.
    """

    def start(run: RunFolder, token: str | bool | None) -> None:
        left_s = permission.sign_in_seconds_left(request)
        if not data["token"].strip() and left_s < parse_duration(timeout):
            remedy = "and the job could not report after that: choose a shorter time limit or enter a token"
            left = format_duration(max(left_s, 0))
            raise HubPermissionError(f"your sign-in on this page expires in {left}, {remedy}")
        job.start(run, flavor, timeout, token, every=REPORT_S)

    try:
        flavor, timeout = data["flavor"].strip(), data["timeout"].strip()
    except (KeyError, TypeError, AttributeError):
        return MALFORMED
    return run_action(start, data, request)


def exchange(data: Any, request: gr.Request) -> dict[str, Any]:
    """Forward the commands for the run `run` to its Job and download its news into the run folder."""
    return run_action(job.refresh, data, request)


def end(data: Any, request: gr.Request) -> dict[str, Any]:
    """Cancel the Job of the run `run` without saving."""
    return run_action(job.cancel, data, request)


def forget(data: Any, request: gr.Request) -> dict[str, Any]:
    """Delete the repository that the finished Job of the run `run` has used."""
    return run_action(job.delete_repository, data, request)


def run_action(action: Action, data: Any, request: gr.Request) -> dict[str, Any]:
    """Call `action(run, token)` for the run `run`. Return {} or a `problem`, with `asks` if a token is missing or
    another one might work. The token is the one typed, else `permission.token_of` the visitor.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run, token = run_of(data["run"]), data["token"].strip()
    except (KeyError, TypeError, AttributeError):
        return MALFORMED
    except ValueError as error:
        return {"problem": message_of(error)}
    if not (token or permission.has_login(request)):
        return {"problem": "a token is required", "asks": True}
    try:
        action(run, token or permission.token_of(request))
    except HubPermissionError as error:
        return {"problem": message_of(error), "asks": True}
    except (ValueError, OSError) as error:
        return {"problem": message_of(error)}
    return {}
