"""dp.files: a file is whole or not there."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dp.files import append_line, is_disk_full, replacing, tail, tidy


class Interrupted(Exception):
    pass


def put(path: Path, content: str | dict[str, str]) -> None:
    """A file with that text, or a folder with those files."""
    if isinstance(content, dict):
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    else:
        path.write_text(content)


def held(path: Path) -> str | dict[str, str] | None:
    """What stands at `path`, in the form that `put` takes."""
    if path.is_dir():
        return {child.name: child.read_text() for child in path.iterdir()}
    return path.read_text() if path.exists() else None


FILES = pytest.mark.parametrize(
    "old, new",
    [
        (None, "new"),
        ("old", "new"),
        (None, {"a": "new"}),
        ({}, {"a": "new"}),
        ({"a": "old", "b": "old"}, {"a": "new"}),
    ],
    ids=["file", "file-over-file", "folder", "folder-over-empty", "folder-over-full"],
)


@FILES
def test_what_was_written_takes_the_place_and_nothing_is_left_over(tmp_path, old, new):
    target = tmp_path / "deep" / "000004"
    if old is not None:
        target.parent.mkdir()
        put(target, old)
    with replacing(target) as aside:
        assert aside != target and aside.parent == target.parent  # a rename is atomic only on the same file system
        put(aside, new)
        assert held(target) == old  # until the end, whoever reads sees the old one
    assert held(target) == new
    assert list(target.parent.iterdir()) == [target]


@FILES
def test_a_failure_while_writing_leaves_the_old_one_untouched_and_nothing_else(tmp_path, old, new):
    target = tmp_path / "000004"
    if old is not None:
        put(target, old)
    with pytest.raises(Interrupted), replacing(target) as aside:
        put(aside, new)
        raise Interrupted
    assert held(target) == old
    assert list(tmp_path.iterdir()) == ([target] if old is not None else [])


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path):
    # The plainest cause: the block wrote nothing. On Windows, a file held open by somebody else fails the same way.
    target = tmp_path / "000004"
    put(target, {"a": "old"})
    with pytest.raises(OSError), replacing(target):
        pass
    assert held(target) == {"a": "old"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("leftover", ["aside", "old"])
def test_leftovers_of_a_killed_process_with_the_same_pid_are_no_obstacle(tmp_path, leftover):
    # In a container, pids repeat: each start of the training process may well have the same one.
    target = tmp_path / "000004"
    put(target, {"a": "old"})
    with replacing(target) as aside:
        put(aside, {"a": "newer"})
        name = aside.name
    stale = tmp_path / (name if leftover == "aside" else name.removesuffix(".tmp") + ".old")
    put(stale, {"half": "written"})
    with replacing(target) as aside:
        aside.mkdir()
        (aside / "a").write_text("newest")
    assert held(target) == {"a": "newest"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_never_sees_half_a_file(tmp_path):
    target, seen, done = tmp_path / "status.json", set(), threading.Event()
    texts = [json.dumps({"step": step, "filler": "x" * 50_000}) for step in range(2)]
    target.write_text(texts[0])

    def read():
        while not done.is_set():
            seen.add(target.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(100):
            with replacing(target) as aside:
                aside.write_text(texts[i % 2])
    finally:
        done.set()
        reader.join()
    assert seen <= set(texts)


@pytest.mark.parametrize("target_stands", [True, False])
def test_tidying_clears_what_killed_processes_left_and_loses_nothing(tmp_path, target_stands):
    # A kill between the two renames of a folder leaves the old one aside, and nothing in its place.
    put(tmp_path / ".000004.123.old", {"a": "old"})
    put(tmp_path / ".000004.123.tmp", {"a": "half"})
    put(tmp_path / ".000008.77.tmp", {"a": "half"})
    put(tmp_path / ".mine", "not one of ours")
    if target_stands:
        put(tmp_path / "000004", {"a": "new"})
    tidy(tmp_path)
    assert held(tmp_path / "000004") == {"a": "new" if target_stands else "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "000004"]


def test_a_line_after_a_torn_one_starts_afresh(tmp_path):
    path = tmp_path / "deep" / "lines"
    append_line(path, "one")
    with path.open("ab") as file:
        file.write(b"tor")  # power cut
    append_line(path, "zwei — ü")
    assert path.read_text(encoding="utf-8") == "one\ntor\nzwei — ü\n"


def test_the_tail_is_the_last_lines_of_however_long_a_file(tmp_path):
    path = tmp_path / "log.txt"
    assert tail(path, 3) == ""
    path.write_bytes(b"\xff broken\n" + b"x" * 100_000 + b"\none\ntwo\n")
    assert tail(path, 2) == "one\ntwo"
    assert len(tail(path, 100)) < 70_000


def test_a_full_disk_is_known_by_its_number_or_by_the_words_of_safetensors():
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_disk_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(ValueError("28"))
