"""Read JSON files and file names from disk, and check them before anything else uses them. Standard library only.

A run folder outlives crashes, manual edits and versions of this program, and the page lists all runs. Callers therefore
get values of known types, or a ValueError with the problem. All text can be encoded as UTF-8, also if a file name or an
escape sequence in the JSON contained invalid characters.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dp.system.validation import quote

MAX_BYTES = 1_000_000  # size limit of one JSON file
MAX_DEPTH = 40  # nesting limit of objects and lists; the page's JSON encoder supports 254
SURROGATES = re.compile("[\ud800-\udfff]")

# The allowed values of a field: (type, low, high) for a number, a dict of fields for an object, or a plain type.
WHOLE = (int, 0, 2**53)  # integers that JavaScript represents exactly
NUMBER = (float, -1e300, 1e300)  # finite
TIME = (float, 0, 1e11)  # unix seconds
STATUS: dict[str, Any] = {  # of status.json
    "state": str,
    "step": WHOLE,
    "total": WHOLE,
    "loss": NUMBER,
    "images_per_s": NUMBER,
    "heartbeat": TIME,
    "started": TIME,
    "message": str,
    "error": str,
    "pid": (int, 1, 2**31),
    "device": str,
    "processes": WHOLE,
    "launch": str,
    "remote": dict,
}
REMOTE: dict[str, Any] = {"repo": str, "flavor": str, "timeout": (float, 0, 1e9), "launch": str, "is_active": bool}
REMOTE_JOB: dict[str, Any] = {"job": str, "url": str}  # additional fields of a job that the Hub has accepted
CONFIG: dict[str, Any] = {  # of config.json
    "name": str,
    "created": TIME,
    "image_size": (int, 1, 2**16),
    "network": dict,
    "policy": dict,
    "trainer": dict,
    "dataset": {"name": str, "count": WHOLE},
    "processes": (int, 1, 1024),
    "license": str,
}
METRICS: dict[str, Any] = {"step": WHOLE, "loss": NUMBER, "lr": NUMBER, "images_per_s": NUMBER, "event": str}
KINDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def readable(text: str) -> str:
    """Replace everything in `text` that UTF-8 cannot encode by U+FFFD."""
    return SURROGATES.sub("\ufffd", text)


def name_of(path: Path) -> str:
    """Return the name of a file as text that UTF-8 can encode. In a name that is not valid UTF-8, the invalid parts are
    replaced by U+FFFD and a digest is appended, so that the names in a folder stay distinct.
    """
    name = readable(path.name)
    return name if name == path.name else f"{name}-{blake2b(os.fsencode(path.name), digest_size=4).hexdigest()}"


def step_of(name: str) -> int | None:
    """Return the step in the name of a file or folder, which has at least six digits, or None for other names."""
    return int(name) if re.fullmatch("[0-9]{6}|[1-9][0-9]{6,11}", name) else None


# ----------------------------------------------------------------------------
# Reading


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text in UTF-8, in which all strings can be encoded. Raises ValueError."""
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(text)
        # Visiting every value is rarely necessary: only an escape sequence can produce a lone surrogate.
        is_plain = "\\u" not in text and text.count("[") + text.count("{") <= MAX_DEPTH
        return value if is_plain else _encodable(value, MAX_DEPTH)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _encodable(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return readable(value)
    if not isinstance(value, (dict, list)):
        return value
    if not depth:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list):
        return [_encodable(item, depth - 1) for item in value]
    return {readable(key): _encodable(item, depth - 1) for key, item in value.items()}


def read(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ValueError if the file holds anything else, and OSError."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe could block, and a device could be endless
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"it must hold a JSON object, not {quote(value)}")
    return value


# ----------------------------------------------------------------------------
# Checking


def fits(value: Any, kind: Any) -> bool:
    """Return whether a field of the tables above may have this value. All fields except objects may be null."""
    if isinstance(kind, tuple):
        of, low, high = kind
        is_number = isinstance(value, (int, of)) and not isinstance(value, bool)
        is_sendable = not isinstance(value, int) or abs(value) <= 2**53
        return value is None or (is_number and is_sendable and low <= value <= high)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(fits(value[key], kind[key]) for key in kind.keys() & value.keys())
    return isinstance(value, kind) or (value is None and kind is not dict)


def check_fields(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError, with name and value, if a field has a value that is not allowed. Fields may be missing."""
    for name, kind in kinds.items():
        if name in values and not fits(value := values[name], kind):
            if isinstance(kind, dict) and isinstance(value, dict):
                check_fields(value, kind, f"{name}.")
            raise ValueError(f"{where + name!r} must be {_words(kind)}, got {quote(value)}")


def _words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return f"a {'whole ' if kind[0] is int else ''}number from {kind[1]:g} to {kind[2]:g}"
    return KINDS[dict if isinstance(kind, dict) else kind]


def config_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with the current field names. Raises ValueError if a field has an invalid value."""
    config = {"license" if key == "licence" else key: value for key, value in values.items()}  # the old spelling
    check_fields(config, CONFIG)
    return config


def status_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of status.json without invalid fields."""
    facts = {key: value for key, value in values.items() if key not in STATUS or fits(value, STATUS[key])}
    if facts.get("remote") and not is_job(facts["remote"]):
        del facts["remote"]
    return facts


def is_job(remote: Mapping[str, Any]) -> bool:
    """Return whether `remote` has all required fields of a job on the Hub."""
    needed = REMOTE | (REMOTE_JOB if remote.get("is_active") else {})
    asked = remote.get("asked")
    are_there = all(remote.get(key) is not None for key in needed)
    return are_there and fits(remote, needed) and isinstance(asked, list) and all(isinstance(v, str) for v in asked)


def metrics_of(line: str | bytes) -> dict[str, Any] | None:
    """Return a record of metrics.jsonl without invalid fields, or None if it is unusable."""
    try:
        values = parse(line)
    except ValueError:  # an incomplete line after a crash
        return None
    if not isinstance(values, dict) or values.get("step") is None or not fits(values["step"], WHOLE):
        return None
    record = {key: value for key, value in values.items() if key in METRICS and fits(value, METRICS[key])}
    for key in ("buckets", "classes"):
        groups = values.get(key)
        if isinstance(groups, dict) and all(fits(loss, NUMBER) for loss in groups.values()):
            record[key] = groups
    return record
