"""Tensor names in files of the first version, which had other names for some submodules. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable

RENAMED = {  # submodule in the first version -> its name since then
    "think": "compute",
    "read_feed": "read_mlp",
    "write_feed": "write_mlp",
    "shrink": "downsample",
    "grow": "upsample",
}


def current_names(names: Iterable[str]) -> dict[str, str]:
    """Return each current tensor name with the name that the file uses for it. Raises ValueError if the file uses names
    of both versions.
    """
    names = sorted(names)
    old = [name for name in names if not RENAMED.keys().isdisjoint(name.split("."))]
    new = [name for name in names if not set(RENAMED.values()).isdisjoint(name.split("."))]
    if old and new:
        raise ValueError(f"the file mixes tensor names of two versions, such as {old[0]} and {new[0]}")
    return {".".join(RENAMED.get(part, part) for part in name.split(".")): name for name in names}
