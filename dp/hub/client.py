"""Calls to the Hugging Face Hub: who asks, how long an answer may take, and what its errors mean. What goes wrong is a
HubError, a sentence for a person, within seconds. A token goes with the call that it was given for: it is never kept,
logged or repeated.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import hf_raise_for_status, httpx, validate_repo_id

from dp.system import proxies
from dp.system.text import plain
from dp.system.validation import quote

PATIENCE = 10  # seconds to wait for an answer
SLOWEST = 20_000  # bytes a second; who is slower than that is no longer waited for
T = TypeVar("T")
Progress = Callable[[int, int], object]  # told of the bytes received, and of all


class HubError(ValueError):
    """What the Hub did not do, why, and what can be done about it."""


class Unreachable(HubError):
    """No answer at all."""


class Refused(HubError):
    """Not with this token, or not without one; another may do."""


def headers_for(repo_id: str, token: str | bool | None) -> dict[str, str]:
    """What every request of a call about "user/name" carries. The token is in it, and nowhere else."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise HubError(f"{quote(repo_id)} is no name on the Hub: write it as user/name") from None
    return headers_of(token)


def headers_of(token: str | bool | None) -> dict[str, str]:
    if isinstance(token, str) and not re.fullmatch(r"[!-~]{0,4000}", token := token.strip()):
        raise HubError("that is not a token: a token is one line of letters and digits that begins with hf_")
    token = get_token() if token is None else token
    return {"user-agent": "dp"} | ({"authorization": f"Bearer {token}"} if token else {})


def token_in(headers: Mapping[str, str]) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ")


def api_for(headers: Mapping[str, str]) -> HfApi:
    _wait_for_nothing()
    return HfApi(endpoint=constants.ENDPOINT, token=token_in(headers) or False)


@cache
def _wait_for_nothing() -> None:
    """By itself the Hub's client waits for an answer without end, tries six times, and sleeps for as long as it is told
    to in between.
    """

    class OneTry(httpx.Client):
        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            if constants.HF_HUB_OFFLINE:
                raise Unreachable("the environment variable HF_HUB_OFFLINE forbids to ask the Hub")
            try:
                answer = super().send(request, **options)
            except httpx.TransportError as error:
                raise _no_answer(error) from None
            if answer.status_code == 429 or answer.status_code >= 500:
                hf_raise_for_status(answer)
            return answer

    patience = httpx.Timeout(PATIENCE, read=3 * PATIENCE)
    set_client_factory(lambda: OneTry(follow_redirects=True, timeout=patience))


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` gives, or a TimeoutError: looking up a name and sending to storage know no time limit of their own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="hub").start()
    return future.result(seconds)


def download(
    url: str,
    headers: dict[str, str],
    target: Path,
    size: int,
    sha256: str | None,
    progress: Progress = lambda received, size: None,
) -> None:
    """Exactly `size` bytes, and not one more, into `target`."""
    digest, received, latest = hashlib.sha256(), 0, time.monotonic() + PATIENCE + size / SLOWEST
    progress(received, size)
    plain_bytes = headers | {"accept-encoding": "identity"}
    with get_session().stream("GET", url, headers=plain_bytes, timeout=PATIENCE) as answer, target.open("wb") as file:
        hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            received += len(chunk)
            if received > size:
                break
            if time.monotonic() > latest:
                raise TimeoutError
            digest.update(chunk)
            file.write(chunk)
            progress(received, size)
    if received != size or sha256 not in (None, digest.hexdigest()):
        raise HubError(f"{target.name} did not arrive as it was sent ({received:,} of {size:,} bytes): try again")


@contextmanager
def in_words(repo_id: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Every error inside as a HubError; without its cause, which may hold the token."""
    if why := proxies.problem():
        raise Unreachable(why)
    expected = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)  # most of them of odd answers
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, FutureTimeout, *expected) as error:
        own = (HubError, httpx.HTTPError)
        if not isinstance(error, own) and isinstance(error.__cause__, own):
            error = error.__cause__  # the library puts the error of an upload, or of the card, into one of its own
        raise _told(error, repo_id, token_in(headers)) from None


def _told(error: BaseException, repo_id: str, token: str) -> HubError:
    if isinstance(error, HubError):
        return error
    if isinstance(error, HfHubHTTPError):
        kind = Refused if error.response.status_code in (401, 403) else HubError
        return kind(_answer(error, repo_id, token))
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL, FutureTimeout, TimeoutError)):
        return _no_answer(error)
    if isinstance(error, OSError):
        return HubError(f"the files of {repo_id} cannot be kept or read: {error.strerror or type(error).__name__}")
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return HubError(f"{constants.ENDPOINT} did not take all of {repo_id}: try again")
    return HubError(f"{constants.ENDPOINT} does not answer as the Hub does: is there a proxy or a login page between?")


def _no_answer(error: BaseException) -> HubError:
    if isinstance(error, (httpx.TimeoutException, FutureTimeout, TimeoutError)):
        return Unreachable(f"{constants.ENDPOINT} did not answer in time: try again, or on a faster line")
    if isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
        return HubError(f"the connection to {constants.ENDPOINT} broke off: try again")
    return Unreachable(f"{constants.ENDPOINT} cannot be reached: is this machine online?")


def _answer(error: HfHubHTTPError, repo_id: str, token: str) -> str:
    status, tokens = error.response.status_code, f"{constants.ENDPOINT}/settings/tokens"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is open to some only: ask at {constants.ENDPOINT}/{repo_id}, then give your account's token"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision"
    if status == 401 and token:
        return f"the Hub does not accept this token: it is mistyped or has expired; make a new one at {tokens}"
    if status in (401, 404):
        return f"there is no model {repo_id}, or it is private: check the name, or give a token that may read it"
    if status == 403:
        return f"this token may not do that with {repo_id}: make one that may at {tokens} (publishing needs to write)"
    if status == 429:
        said = [error.response.headers.get(name, "") for name in ("retry-after", "ratelimit")]
        wait = re.fullmatch(r"(\d+)", said[0]) or re.search(r"\bt=(\d+)", said[1])
        return f"too many requests; the Hub says to wait {f'{wait[1]} seconds' if wait else 'a few minutes'}"
    if status >= 500:
        return f"the Hub has trouble of its own (error {status}): try again in a few minutes"
    why = plain((error.server_message or "").replace(token or "\0", "…"))
    return f"the Hub refuses this (error {status}): {why or 'it does not say why'}"
