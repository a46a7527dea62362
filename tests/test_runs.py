"""dp.runs: the run folder and its atomic writes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from dp.runs import RunFolder, replacing


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


def test_a_milestone_is_the_step_in_six_digits(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoint(500) == tmp_path / "checkpoints" / "000500"
    assert run.sample(500) == tmp_path / "samples" / "000500.png"


def test_milestones_are_whole_checkpoints_in_the_order_of_their_steps(tmp_path):
    run = RunFolder(tmp_path)
    assert run.milestones() == []  # before anything was written
    # A million comes after 900,000 although it sorts before it as text.
    for name in ("1000000", "000008", "900000", ".000004.123.tmp", ".000004.123.old", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert run.milestones() == [8, 900_000, 1_000_000]


def test_a_half_written_checkpoint_is_no_milestone_while_it_is_being_written(tmp_path):
    run = RunFolder(tmp_path)
    with replacing(run.checkpoint(4)) as aside:
        aside.mkdir()
        assert run.milestones() == []
    assert run.milestones() == [4]


def test_a_run_folder_is_made_only_when_something_is_written(tmp_path):
    run = RunFolder(tmp_path / "runs" / "mine")
    run.milestones()
    assert not run.path.exists()
    run.log({"step": 1})
    assert run.path.is_dir()


def test_the_log_takes_one_json_object_a_line_and_keeps_the_lines_before(tmp_path):
    records = [{"step": 10, "loss": 0.25}, {"step": 20, "note": "zwei\nZeilen — ü"}]
    for record in records:
        RunFolder(tmp_path).log(record)  # a fresh one each time: a resumed run goes on in the same file
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_the_log_goes_on_after_a_line_torn_by_a_crash(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"step": 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # power cut
    run.log({"step": 30})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"step": 30}
