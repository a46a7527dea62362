"""The machines that the Hub lends as Jobs: what there is, what it costs, for how long, and why it may be refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError, RepositoryNotFoundError

from dp.hub.client import PATIENCE, HubError, Refused, Unreachable, api_for, headers_of, in_words, within
from dp.system.text import plain
from dp.system.validation import quote

FLAVOR, TIMEOUT = "a10g-small", "2h"  # where nothing else is said
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
UNITS_AN_HOUR = {"second": 3600, "minute": 60, "hour": 1}
LONGEST_S = 30 * UNITS["d"]
LOG_LINES = 20
REFUSALS = {
    402: "the account has no credit for Jobs: add some at {}/settings/billing",
    403: "this token may not do that: make one that may run Jobs and write at {}/settings/tokens",
    404: "{} offers no Jobs to this account",
}


def hardware(token: str | bool | None = None) -> dict[str, tuple[str, float | None]]:
    """The flavors of machines on offer -> what each is, and its dollars an hour, None where the Hub does not say."""
    headers, found = headers_of(token), {}
    with in_words("the list of machines", headers):
        for offer in within(3 * PATIENCE, api_for(headers).list_jobs_hardware):
            gpu, units = offer.accelerator, UNITS_AN_HOUR.get(offer.unit_label)
            words = f"{gpu.quantity} × {gpu.model}, {gpu.vram}" if gpu else f"{offer.cpu}, {offer.ram}"
            found[offer.name] = plain(words), float(offer.unit_cost_usd) * units if units else None
    return found


def check(flavor: str, found: dict[str, tuple[str, float | None]]) -> None:
    if flavor not in found:
        raise HubError(f"there is no machine {quote(flavor)}; there are: {', '.join(found)}")


def describe(flavor: str, timeout: str | float, token: str | bool | None = None) -> str:
    """Return the price of a Job, to be shown before it starts. Raises HubError for an unknown flavor."""
    limit_s = seconds_of(timeout)
    limit = f"It pauses after {words_of(limit_s)} at the latest, and can be resumed."
    try:
        check(flavor, found := hardware(token))
    except Unreachable as error:
        return f"What {flavor} costs is not known, since {error}. {limit}"
    machine, per_hour = found[flavor]
    if per_hour is None:
        return f"What {flavor} ({machine}) costs is not known: see {constants.ENDPOINT}/pricing. {limit}"
    return f"{flavor} ({machine}) costs ${per_hour:.2f} an hour, ${per_hour * limit_s / 3600:.2f} at most. {limit}"


def seconds_of(timeout: str | float) -> int:
    """Return the seconds in "90s", "30m", "2h" or "1d", or in a number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(timeout))
    seconds = float(found[1]) * UNITS[found[2] or "s"] if found else 0
    if not 1 <= seconds <= LONGEST_S:
        raise ValueError(f"a time limit is written as 30m, 2h or 1d, and at most 30d; got {quote(timeout)}")
    return int(seconds)


def words_of(seconds: float) -> str:
    for unit, size in (("days", UNITS["d"]), ("hours", UNITS["h"]), ("minutes", UNITS["m"])):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def named(remote: dict[str, Any]) -> dict[str, str]:
    """A run's Job, as the Hub's client names it."""
    return {"job_id": remote["job"], "namespace": remote["repo"].split("/")[0]}


def log_of(api: HfApi, remote: dict[str, Any]) -> list[str]:
    """The last lines that a Job has said; none where they are not to be had."""
    with suppress(Exception):  # of a Job that is gone there may be anything, or nothing
        lines = within(3 * PATIENCE, lambda: list(api.fetch_job_logs(**named(remote), tail=LOG_LINES)))
        return [plain(line) for line in lines]
    return []


@contextmanager
def refusals() -> Iterator[None]:
    """Translate the Hub's errors about Jobs."""
    try:
        yield
    except HfHubHTTPError as error:
        words = REFUSALS.get(error.response.status_code)
        if words is None or isinstance(error, (JobNotFoundError, RepositoryNotFoundError)):
            raise
        kind = Refused if error.response.status_code == 403 else HubError
        raise kind(words.format(constants.ENDPOINT)) from None
