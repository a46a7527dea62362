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

TIMEOUT_S = 10  # seconds to wait for a response
MIN_BYTES_PER_S = 20_000  # slower transfers are aborted
T = TypeVar("T")
Progress = Callable[[int, int], object]  # called with the bytes received so far and the total


class HubError(ValueError):
    """A call to the Hub failed. The message says why, and what the user can do."""


class HubConnectionError(HubError):
    """The Hub did not respond."""


class HubPermissionError(HubError):
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
    """Return the headers of a request: with the token that this machine is logged in with if it is None, and without a
    token if it is False or "". Raises HubError for a malformed token.
    """
    if isinstance(token, str) and not re.fullmatch(r"[!-~]{0,4000}", token := token.strip()):
        raise HubError("the token is malformed; a token is a single line of letters and digits that begins with hf_")
    token = get_token() if token is None else token
    return {"user-agent": "dp"} | ({"authorization": f"Bearer {token}"} if token else {})


def token_in(headers: Mapping[str, str]) -> str:
    """Return the token in the headers of a request, or ""."""
    return headers.get("authorization", "").removeprefix("Bearer ")


def api_for(headers: Mapping[str, str]) -> HfApi:
    """Return a client of the Hub with the token in `headers`, and with limited timeouts."""
    _configure_client()
    return HfApi(endpoint=constants.ENDPOINT, token=token_in(headers) or False)


@cache
def _configure_client() -> None:
    """Limit the time per request, and disable retries. By default, the client of huggingface_hub waits for a response
    without a limit, tries six times, and sleeps between the attempts for as long as the server requests.
    """

    class NoRetryClient(httpx.Client):
        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            if constants.HF_HUB_OFFLINE:
                raise HubConnectionError(
                    "the Hub is disabled by the environment variable HF_HUB_OFFLINE; unset it to use the Hub"
                )
            try:
                response = super().send(request, **options)
            except httpx.TransportError as error:
                raise _connection_error(error) from None
            if response.status_code == 429 or response.status_code >= 500:
                hf_raise_for_status(response)
            return response

    timeout = httpx.Timeout(TIMEOUT_S, read=3 * TIMEOUT_S)
    set_client_factory(lambda: NoRetryClient(follow_redirects=True, timeout=timeout))


def run_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of `call`, or raise TimeoutError after that many seconds. Name lookups and uploads to storage
    have no time limit of their own.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="hub").start()
    return future.result(seconds)


def download_file(
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
    digest, received, deadline = hashlib.sha256(), 0, time.monotonic() + TIMEOUT_S + size / MIN_BYTES_PER_S
    progress(received, size)
    identity = headers | {"accept-encoding": "identity"}
    with get_session().stream("GET", url, headers=identity, timeout=TIMEOUT_S) as response, target.open("wb") as file:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            received += len(chunk)
            if received > size:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
            digest.update(chunk)
            file.write(chunk)
            progress(received, size)
    if received != size or sha256 not in (None, digest.hexdigest()):
        raise HubError(f"{target.name} was not downloaded correctly ({received:,} of {size:,} bytes); try again")


@contextmanager
def translate_errors(repo_id: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Convert every error inside the block to a HubError. The original error is not chained, because it may contain the
    token.
    """
    if why := proxies.problem():
        raise HubConnectionError(why)
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
        raise _translate(error, repo_id, token_in(headers)) from None


def _translate(error: BaseException, repo_id: str, token: str) -> HubError:
    if isinstance(error, HubError):
        return error
    if isinstance(error, HfHubHTTPError):
        kind = HubPermissionError if error.response.status_code in (401, 403) else HubError
        return kind(_status_message(error, repo_id, token))
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL, FutureTimeout, TimeoutError)):
        return _connection_error(error)
    if isinstance(error, OSError):
        return HubError(f"the files of {repo_id} cannot be written or read: {error.strerror or type(error).__name__}")
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return HubError(f"the upload of {repo_id} to {constants.ENDPOINT} is incomplete; try again")
    return HubError(f"{constants.ENDPOINT} did not respond like the Hub; check for a proxy or a login page in between")


def _connection_error(error: BaseException) -> HubError:
    if isinstance(error, (httpx.TimeoutException, FutureTimeout, TimeoutError)):
        return HubConnectionError(
            f"{constants.ENDPOINT} did not respond in time; try again, or use a faster connection"
        )
    if isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
        return HubError(f"the connection to {constants.ENDPOINT} was interrupted; try again")
    return HubConnectionError(f"{constants.ENDPOINT} cannot be reached; check the network connection")


def _status_message(error: HfHubHTTPError, repo_id: str, token: str) -> str:
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
        retry_after, rate_limit = (error.response.headers.get(name, "") for name in ("retry-after", "ratelimit"))
        wait = re.fullmatch(r"(\d+)", retry_after) or re.search(r"\bt=(\d+)", rate_limit)
        return f"the Hub received too many requests; wait {f'{wait[1]} seconds' if wait else 'a few minutes'}"
    if status >= 500:
        return f"the Hub has an internal problem (error {status}); try again in a few minutes"
    reason = plain((error.server_message or "").replace(token or "\0", "…"))
    return f"the Hub rejected the request (error {status}): {reason or 'no reason given'}"
