"""Class folders: the folders directly below the root of a dataset are its classes, as in torchvision's ImageFolder."""

from __future__ import annotations

from collections.abc import Sequence

from dp.data.decode import is_ignored
from dp.system.validation import MAX_CLASS_NAME, MAX_CLASSES, quote


def find_classes(names: Sequence[str], *, may_be_wrapped: bool = False) -> tuple[list[str], list[int]]:
    """Return the classes of the images with these names, and the label of each image: the position of its class,
    counted from 1, or 0 for none. Both are empty unless there are 2 to MAX_CLASSES classes.

    names: paths relative to the root, with slashes. A class is a folder directly below the root that holds at least one
    of the images, at any depth; hidden and system folders are none. The classes are in the order of the folders' names.
    may_be_wrapped: if all images are in one folder, that folder is the root.
    """
    paths = [name.split("/") for name in names]
    if may_be_wrapped and len({path[0] for path in paths if len(path) > 1}) == 1 and all(len(p) > 1 for p in paths):
        paths = [path[1:] for path in paths]
    tops = [path[0] if len(path) > 1 and not is_ignored(path[0]) else "" for path in paths]
    folders = sorted(set(tops) - {""})
    if not 2 <= len(folders) <= MAX_CLASSES:
        return [], []
    label = {folder: i for i, folder in enumerate(folders, 1)} | {"": 0}
    return class_names(folders), [label[top] for top in tops]


def class_names(folders: Sequence[str]) -> list[str]:
    """Return the name of the class of each folder: printable, at most MAX_CLASS_NAME characters, and unique."""
    found: list[str] = []
    for folder in folders:
        plain = " ".join("".join(c if c.isprintable() else "\ufffd" for c in folder).split())
        name, number = plain[:MAX_CLASS_NAME], 1
        while name in found:
            number += 1
            name = f"{plain[: MAX_CLASS_NAME - len(str(number)) - 3]} ({number})"
        found.append(name)
    return found


def check_classes(classes: Sequence[str], folder: str) -> None:
    """Raise ValueError unless the images of a dataset in `folder` have classes."""
    if not classes:
        rule = f"classes need 2 to {MAX_CLASSES:,} folders of images directly below it"
        raise ValueError(f"no classes in {quote(folder)}: {rule}")
