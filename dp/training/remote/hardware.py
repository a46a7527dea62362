"""The machines that Hugging Face rents for jobs: flavors, prices, time limits and errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError, RepositoryNotFoundError

from dp.hub.client import (
    TIMEOUT_S,
    HubConnectionError,
    HubError,
    HubPermissionError,
    api_for,
    headers_of,
    run_with_timeout,
    translate_errors,
)
from dp.system.text import plain
from dp.system.validation import quote
from dp.training.status import RemoteJob

DEFAULT_FLAVOR, DEFAULT_TIMEOUT = "a10g-small", "2h"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
UNITS_PER_HOUR = {"second": 3600, "minute": 60, "hour": 1}
MAX_DURATION_S = 30 * UNITS["d"]
LOG_LINES = 20
JOB_ERRORS = {  # by HTTP status
    402: "this account has no credit for jobs: add some at {}/settings/billing",
    403: "this token lacks a permission: create one that may run jobs and write at {}/settings/tokens",
    404: "{} does not offer jobs to this account",
}


def list_hardware(token: str | bool | None = None) -> dict[str, tuple[str, float | None]]:
    """Return flavor -> (description, US dollars per hour), with None for an unknown price."""
    headers, machines = headers_of(token), {}
    with translate_errors("the list of machines", headers):
        for offer in run_with_timeout(3 * TIMEOUT_S, api_for(headers).list_jobs_hardware):
            gpu, units = offer.accelerator, UNITS_PER_HOUR.get(offer.unit_label)
            description = f"{gpu.quantity} × {gpu.model}, {gpu.vram}" if gpu else f"{offer.cpu}, {offer.ram}"
            machines[offer.name] = plain(description), float(offer.unit_cost_usd) * units if units else None
    return machines


def check_flavor(flavor: str, machines: dict[str, tuple[str, float | None]]) -> None:
    if flavor not in machines:
        raise HubError(f"unknown machine {quote(flavor)}; available: {', '.join(machines)}")


def describe_price(flavor: str, timeout: str | float, token: str | bool | None = None) -> str:
    """Return the price of a job in sentences, to be shown before it starts. Raises HubError for an unknown flavor."""
    limit_s = parse_duration(timeout)
    limit = f"It pauses after at most {format_duration(limit_s)} and can be resumed."
    try:
        check_flavor(flavor, machines := list_hardware(token))
    except HubConnectionError as error:
        return f"The price of {flavor} is unknown: {error}. {limit}"
    description, per_hour = machines[flavor]
    if per_hour is None:
        return f"The price of {flavor} ({description}) is unknown: see {constants.ENDPOINT}/pricing. {limit}"
    total = per_hour * limit_s / 3600
    return f"{flavor} ({description}) costs ${per_hour:.2f} per hour, at most ${total:.2f}. {limit}"


def parse_duration(duration: str | float) -> int:
    """Return the seconds in "90s", "30m", "2h" or "1d", or in a number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(duration))
    seconds = float(match[1]) * UNITS[match[2] or "s"] if match else 0
    if not 1 <= seconds <= MAX_DURATION_S:
        raise ValueError(f"a time limit must be written as 30m, 2h or 1d and be at most 30d, got {quote(duration)}")
    return int(seconds)


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two, such as "90 minutes" or "2 hours"."""
    for unit, size in (("days", UNITS["d"]), ("hours", UNITS["h"]), ("minutes", UNITS["m"])):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def job_arguments(remote: RemoteJob) -> dict[str, str | None]:
    """Return the arguments that name a run's job in the Hub's client."""
    return {"job_id": remote.id, "namespace": remote.repo.split("/")[0]}


def fetch_log(api: HfApi, remote: RemoteJob) -> list[str]:
    """Return the last lines of a job's log, or [] if it is not available."""
    with suppress(Exception):  # the Hub may answer anything for a job that no longer exists
        job = job_arguments(remote)
        lines = run_with_timeout(3 * TIMEOUT_S, lambda: list(api.fetch_job_logs(**job, tail=LOG_LINES)))
        return [plain(line) for line in lines]
    return []


@contextmanager
def translate_job_errors() -> Iterator[None]:
    """Raise HubError, with advice, for the Hub's errors about jobs."""
    try:
        yield
    except HfHubHTTPError as error:
        message = JOB_ERRORS.get(error.response.status_code)
        if message is None or isinstance(error, (JobNotFoundError, RepositoryNotFoundError)):
            raise
        kind = HubPermissionError if error.response.status_code == 403 else HubError
        raise kind(message.format(constants.ENDPOINT)) from None
