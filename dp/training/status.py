"""The fields of status.json and the states of a training run. Needs the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp.system import records

ACTIVE_STATES = ("queued", "preparing", "running", "pausing", "stopping")
STATES = ("new", *ACTIVE_STATES, "paused", "stopped", "finished", "failed", "interrupted")
FIELDS = ("total", "loss", "images_per_s", "heartbeat", "started", "message", "error", "pid", "device", "processes")
FIELDS += ("remote",)  # the last remote job of the run; see dp.training.remote.job
EMPTY_STATUS = {"step": 0} | dict.fromkeys(FIELDS)


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
