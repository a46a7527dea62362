"""Calls to the Hugging Face Hub: headers, time limits and error messages. Every failure becomes a HubError with a
readable message within seconds. A token is sent only with the call that it was given for; it is never stored, logged or
included in a message.
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

PATIENCE = 10  # seconds to wait for a response
SLOWEST = 20_000  # bytes per second; slower transfers are aborted
T = TypeVar("T")
Progress = Callable[[int, int], object]  # called with the bytes received so far and the total


class HubError(ValueError):
    """A call to the Hub failed. The message says why, and what the user can do."""


class Unreachable(HubError):
    """The Hub did not answer at all."""


class Refused(HubError):
    """The Hub rejected the call with this token, or without one; another token may work."""


def headers_for(repo_id: str, token: str | bool | None) -> dict[str, str]:
    """Return the headers of every request about "user/name". The token is stored only there. Raises HubError for a
    malformed name or token.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise HubError(f"{quote(repo_id)} is not a valid repository name; write it as user/name") from None
    return headers_of(token)


def headers_of(token: str | bool | None) -> dict[str, str]:
    if isinstance(token, str) and not re.fullmatch(r"[!-~]{0,4000}", token := token.strip()):
        raise HubError("the token is malformed; a token is a single line of letters and digits that begins with hf_")
    token = get_token() if token is None else token
    return {"user-agent": "dp"} | ({"authorization": f"Bearer {token}"} if token else {})


def token_in(headers: Mapping[str, str]) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ")


def api_for(headers: Mapping[str, str]) -> HfApi:
    _wait_for_nothing()
    return HfApi(endpoint=constants.ENDPOINT, token=token_in(headers) or False)


@cache
def _wait_for_nothing() -> None:
    """Limit waiting and retries. By default, the Hub's client waits for a response without a limit, tries six times,
    and sleeps between the attempts for as long as the server asks.
    """

    class OneTry(httpx.Client):
        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            if constants.HF_HUB_OFFLINE:
                raise Unreachable(
                    "the Hub is disabled by the environment variable HF_HUB_OFFLINE; unset it to use the Hub"
                )
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
    """Return the result of `ask`, or raise TimeoutError after that many seconds. Name lookups and uploads to storage
    have no time limit of their own.
    """
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
    """Download exactly `size` bytes to `target`. Raises HubError if the size or the checksum differs, and TimeoutError
    if the download is too slow.
    """
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
        raise HubError(f"{target.name} was not downloaded correctly ({received:,} of {size:,} bytes); try again")


@contextmanager
def in_words(repo_id: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Convert every error inside the block to a HubError. The original error is not chained, because it may contain the
    token.
    """
    if why := proxies.problem():
        raise Unreachable(why)
    expected = (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
    )  # mostly from malformed responses
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, FutureTimeout, *expected) as error:
        own = (HubError, httpx.HTTPError)
        if not isinstance(error, own) and isinstance(error.__cause__, own):
            error = error.__cause__  # huggingface_hub wraps errors of an upload or of the model card
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
        return HubError(f"the files of {repo_id} cannot be written or read: {error.strerror or type(error).__name__}")
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return HubError(f"the upload of {repo_id} to {constants.ENDPOINT} is incomplete; try again")
    return HubError(f"{constants.ENDPOINT} did not respond like the Hub; check for a proxy or a login page in between")


def _no_answer(error: BaseException) -> HubError:
    if isinstance(error, (httpx.TimeoutException, FutureTimeout, TimeoutError)):
        return Unreachable(f"{constants.ENDPOINT} did not respond in time; try again, or use a faster connection")
    if isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
        return HubError(f"the connection to {constants.ENDPOINT} was interrupted; try again")
    return Unreachable(f"{constants.ENDPOINT} cannot be reached; check the network connection")


def _answer(error: HfHubHTTPError, repo_id: str, token: str) -> str:
    status, tokens = error.response.status_code, f"{constants.ENDPOINT}/settings/tokens"
    if isinstance(error, GatedRepoError):
        return f"access to {repo_id} is restricted; request it at {constants.ENDPOINT}/{repo_id}, then enter your token"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision"
    if status == 401 and token:
        return f"the Hub does not accept this token; it is mistyped or has expired. Create a new one at {tokens}"
    if status in (401, 404):
        return f"there is no model {repo_id}, or it is private; check the name, or enter a token with access to it"
    if status == 403:
        return f"this token lacks a permission for {repo_id}; create one at {tokens} (publishing needs write access)"
    if status == 429:
        said = [error.response.headers.get(name, "") for name in ("retry-after", "ratelimit")]
        wait = re.fullmatch(r"(\d+)", said[0]) or re.search(r"\bt=(\d+)", said[1])
        return f"the Hub received too many requests; wait {f'{wait[1]} seconds' if wait else 'a few minutes'}"
    if status >= 500:
        return f"the Hub has an internal problem (error {status}); try again in a few minutes"
    why = plain((error.server_message or "").replace(token or "\0", "…"))
    return f"the Hub rejected the request (error {status}): {why or 'no reason given'}"
