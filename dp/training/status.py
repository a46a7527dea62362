"""The status of a training run and the format of status.json. Needs the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dp.system import records

ACTIVE_STATES = ("queued", "preparing", "running", "pausing", "stopping")
STATES = ("new", *ACTIVE_STATES, "paused", "stopped", "finished", "failed", "interrupted")
JSON_NAMES = {"id": "job", "forwarded": "asked"}  # field of RemoteJob -> key in status.json


@dataclass
class RemoteJob:
    """The last remote job of a run; see dp.training.remote.job.

    repo: the repository that the run folder is synchronized with. timeout: time limit in seconds. launch: an id that
    differs between jobs in the same repository. forwarded: the commands that the job has not handled yet. id, url: set
    once the Hub has accepted the job.
    """

    repo: str
    flavor: str
    timeout: float
    launch: str
    is_active: bool = False
    forwarded: list[str] = field(default_factory=list)
    id: str | None = None
    url: str | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RemoteJob:
        names = {JSON_NAMES.get(item.name, item.name): item.name for item in fields(cls)}
        return cls(**{names[key]: value for key, value in values.items() if key in names})

    def to_json(self) -> dict[str, Any]:
        """Return the fields for status.json, without those that are None."""
        values = {JSON_NAMES.get(name, name): value for name, value in vars(self).items()}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class RunStatus:
    """The current status of a run. Fields are None as long as they are unknown.

    state: one of STATES, derived from status.json and the lock. is_responding: whether the process is alive and its
    last heartbeat is recent. heartbeat, started: Unix seconds. error: a traceback. launch: identifies the processes
    that were started together.
    """

    state: str
    is_responding: bool = False
    step: int = 0
    total: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    heartbeat: float | None = None
    started: float | None = None
    message: str | None = None
    error: str | None = None
    pid: int | None = None
    device: str | None = None
    processes: int | None = None
    launch: str | None = None
    remote: RemoteJob | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any], state: str, is_responding: bool) -> RunStatus:
        """Create a status from the result of `parse_status`."""
        names = {item.name for item in fields(cls)}
        known = {key: value for key, value in values.items() if key in names and value is not None}
        remote = RemoteJob.from_json(values["remote"]) if values.get("remote") else None
        return cls(**known | {"state": state, "is_responding": is_responding, "remote": remote})


def parse_status(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid fields of a status.json; invalid ones, and an unknown state, are dropped.

    Accepts the spellings of version 1, which a process or job of that version may still write: the state "lost" is now
    "interrupted", and `is_going_on` of a remote job is now `is_active`.
    """
    values = dict(values)
    if values.get("state") == "lost":
        values["state"] = "interrupted"
    remote = values.get("remote")
    if isinstance(remote, dict) and "is_going_on" in remote:
        remote = dict(remote)
        values["remote"] = {"is_active": remote.pop("is_going_on")} | remote
    status = records.status_of(values)
    if status.get("state") not in STATES:
        status.pop("state", None)
    return status
