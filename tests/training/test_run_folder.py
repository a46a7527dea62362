"""Tests of dp.training.run_folder, locks and status, and of dp.system.atomic_files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from dp.system.atomic_files import is_disk_full, remove_leftovers, replacing
from dp.system.environment import runs_dir
from dp.training import processes
from dp.training.locks import LockingUnsupported
from dp.training.run_folder import HANDOVER_TIMEOUT_S, RunFolder, RunLocked, list_runs
from dp.training.status import STATES, RunStatus

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process_holding(run: RunFolder):
    """Start a process that holds the run's lock, and kill it at the end."""
    script = f"from dp.training.run_folder import RunFolder; run = RunFolder({str(run.path)!r})\n"
    script += "with run.hold_lock(): print('held', flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_checkpoints_and_samples_are_named_by_the_step_in_six_digits(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoint(500) == tmp_path / "checkpoints" / "000500"
    assert run.sample(500) == tmp_path / "samples" / "000500.png"


def test_checkpoint_steps_are_sorted_by_number(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoint_steps() == []  # the folder does not exist
    # 1,000,000 comes after 900,000 although it sorts before it as text.
    for name in ("1000000", "000008", "900000", ".000004.123.tmp", ".000004.123.old", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert run.checkpoint_steps() == [8, 900_000, 1_000_000]


def test_a_checkpoint_is_listed_only_once_it_is_complete(tmp_path):
    run = RunFolder(tmp_path)
    with replacing(run.checkpoint(4)) as aside:
        aside.mkdir()
        assert run.checkpoint_steps() == []
    assert run.checkpoint_steps() == [4]


def test_a_run_folder_is_created_by_the_first_write(tmp_path):
    run = RunFolder(tmp_path / "runs" / "mine")
    run.checkpoint_steps()
    assert not run.path.exists()
    run.append_metrics({"step": 1})
    assert run.path.is_dir()


def test_metrics_are_appended_as_one_json_object_per_line(tmp_path):
    records = [{"step": 10, "loss": 0.25}, {"step": 20, "note": "zwei\nZeilen — ü"}]
    for record in records:
        RunFolder(tmp_path).append_metrics(record)  # a new object each time, as a resumed run appends to the same file
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_metrics_are_appended_after_a_line_torn_by_a_crash(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # power cut
    run.append_metrics({"step": 30})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"step": 30}


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("reported", ["queued", "preparing", "running"])
def test_a_run_is_alive_while_its_lock_is_held_and_then_interrupted(run, reported):
    run.update_status(state=reported, step=7, heartbeat=time.time())
    with process_holding(run) as process:
        status = run.status()
        assert (status.state, status.is_responding, status.step) == (reported, True, 7)
        run.request("pause")
        assert run.status().state == "pausing"
        run.request("stop")
        assert run.status().state == "stopping"
        process.kill()
        process.wait()
        assert run.status().state == "interrupted"
    assert run.status().is_responding is False


def test_the_spellings_of_version_1_are_read_and_replaced(run):
    remote = {"repo": "ann/dp-x", "flavor": "cpu-basic", "timeout": 60, "launch": "ab", "asked": []}
    remote |= {"job": "12", "url": "https://huggingface.co/jobs/ann/12"}
    run.path.mkdir()
    run.status_file.write_text(json.dumps({"state": "lost", "step": 7, "remote": remote | {"is_going_on": False}}))
    status = run.status()
    assert (status.state, status.step, status.remote.is_active) == ("interrupted", 7, False)
    run.status_file.write_text(json.dumps({"state": "running", "remote": remote | {"is_going_on": True}}))
    assert run.has_active_job() and run.status().state == "running"
    run.update_status(step=8)
    assert json.loads(run.status_file.read_text())["remote"] == remote | {"is_active": True}


@pytest.mark.parametrize("reported", ["paused", "stopped", "finished", "failed"])
def test_an_ended_run_keeps_its_state(run, reported):
    run.update_status(state=reported)
    run.request("stop")  # too late
    assert run.status().state == reported


def test_a_run_that_was_never_started_is_new_and_its_fields_are_none(run):
    assert run.status() == RunStatus("new")
    assert {"new", "queued", "interrupted", "pausing"} < set(STATES)


def test_a_process_without_heartbeats_is_alive_but_not_responding(run):
    run.update_status(state="running", heartbeat=time.time() - 3600)
    with process_holding(run):
        status = run.status()
    assert (status.state, status.is_responding) == ("running", False)


@pytest.mark.parametrize("hours", [-30, 30])
def test_changing_the_clock_does_not_affect_is_responding(run, monkeypatch, hours):
    set_by, waited, wall, monotonic = 0, 0, time.time, time.monotonic
    monkeypatch.setattr("time.time", lambda: wall() + waited + set_by)
    monkeypatch.setattr("time.monotonic", lambda: monotonic() + waited)
    run.update_status(state="running", heartbeat=time.time())
    with process_holding(run):
        assert run.status().is_responding
        set_by = hours * 3600
        assert run.status().is_responding
        waited = 59
        assert run.status().is_responding
        waited = 61
        assert not run.status().is_responding
        run.update_status(heartbeat=time.time())
        assert run.status().is_responding
        run.update_status(heartbeat=time.time() - hours * 3600)  # from a machine with another clock, on a shared disk
        assert run.status().is_responding
        waited = 130
        assert not run.status().is_responding


def test_a_heartbeat_from_the_future_counts_as_current(run, monkeypatch):
    run.update_status(state="running", heartbeat=time.time() + 3600)
    monotonic = time.monotonic
    with process_holding(run):
        assert run.status().is_responding
        monkeypatch.setattr("time.monotonic", lambda: monotonic() + 61)
        assert not run.status().is_responding


# ----------------------------------------------------------------------------
# The lock


@contextmanager
def checking(run: RunFolder, seconds: float):
    """Start another process that holds a shared lock, as a check does, for far longer than a check takes."""
    script = f"import fcntl, time; file = open({str(run.path / 'lock')!r}); fcntl.flock(file, fcntl.LOCK_SH)\n"
    script += f"print('checking', flush=True); time.sleep({seconds})"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "checking\n"
        yield
        process.kill()


@pytest.mark.skipif(os.name == "nt", reason="locks cannot be shared there")
def test_a_check_by_another_app_is_not_mistaken_for_a_training_process(run):
    run.update_status(state="running")
    with run.hold_lock():
        pass
    with checking(run, 60):
        assert not run.is_alive() and run.status().state == "interrupted"
    with checking(run, HANDOVER_TIMEOUT_S / 10):
        processes.stop(run)  # acquires the lock for a moment
        assert run.status().state == "stopped"
    with checking(run, HANDOVER_TIMEOUT_S / 10), run.hold_lock():
        assert run.is_alive()


def test_concurrent_checks_by_apps_and_threads_do_not_interfere(run, tmp_path):
    run.update_status(state="running")
    with run.hold_lock():
        pass
    script = f"import os; from dp.training.run_folder import RunFolder; run = RunFolder({str(run.path)!r})\n"
    script += "print('checking', flush=True); found = 0\n"
    script += f"while not os.path.exists({str(tmp_path / 'enough')!r}): found += run.is_alive()\n"
    script += "print(found)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "checking\n"
        try:
            with ThreadPoolExecutor(4) as threads:
                mine = [found.result() for found in [threads.submit(run.is_alive) for _ in range(2000)]]
        finally:
            (tmp_path / "enough").touch()
        assert not any(mine) and other.stdout.read() == "0\n"


@pytest.mark.skipif(os.name == "nt", reason="other calls")
@pytest.mark.parametrize("code", ["ENOTSUP", "ENOLCK", "EIO", "EPERM", "EINVAL"])
def test_a_disk_without_locks_is_an_error_for_its_runs_only(tmp_path, monkeypatch, code):
    """Some network drives raise these errors. The run on the drive was created elsewhere and moved there."""
    there, here = RunFolder(tmp_path / "drive" / "there"), RunFolder(tmp_path / "here")
    for run in (there, here):
        run.update_status(state="running")
        (run.path / "lock").touch()
    flock = fcntl.flock

    def fail_there(descriptor, operation):
        inodes = {path.stat().st_ino for path in (tmp_path / "drive").rglob("*")}
        if os.fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno()).st_ino in inodes:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        return flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", fail_there)
    assert [run.id for run in list_runs(tmp_path / "drive")] == ["there"] and there.status().state == "interrupted"
    places = rf"cannot lock files in '{there.path}'.*{os.strerror(getattr(errno, code))}.*DP_HOME"
    with pytest.raises(LockingUnsupported, match=places), there.hold_lock():
        pass
    assert there.status().state == "interrupted" and there.status().message is None
    for function in (processes.delete, processes.stop):
        with pytest.raises(LockingUnsupported, match=places):
            function(there)
    with here.hold_lock():
        assert here.is_alive() and not there.is_alive()


def test_locking_a_path_that_is_not_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    run = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(LockingUnsupported, match=r"cannot lock files in '.*file/run'"), run.hold_lock():
        pass


def test_a_damaged_status_is_ignored_and_replaced(run):
    run.update_status(state="running")
    run.status_file.write_text('{"state": "runn')
    assert run.status().state == "interrupted"
    with process_holding(run):
        assert run.status().state == "preparing"
    run.update_status(step=3)
    assert run.status().step == 3


def test_updating_the_status_keeps_the_other_fields(run):
    run.update_status(state="running", step=1)
    run.update_status(step=2)
    assert json.loads(run.status_file.read_text()) == {"state": "running", "step": 2}


def test_only_one_process_holds_a_run(run, monkeypatch):
    monkeypatch.setattr("dp.training.run_folder.HANDOVER_TIMEOUT_S", 0.1)
    with process_holding(run), pytest.raises(RunLocked, match="'run'"), run.hold_lock():
        pass
    with run.hold_lock(), RunFolder(run.path).hold_lock():  # nested blocks share the lock
        assert run.is_alive()
    assert not run.is_alive()


def test_holding_the_lock_clears_old_requests_and_temporary_files(run):
    run.update_status(state="interrupted")
    for verb in ("stop", "pause", "save", "sample"):
        run.request(verb)
    (run.path / "checkpoints" / ".000004.123.tmp").mkdir(parents=True)
    with run.hold_lock():
        assert not any(run.is_requested(verb) for verb in ("stop", "pause", "save", "sample"))
        assert list((run.path / "checkpoints").iterdir()) == []


def test_an_error_is_reported_with_its_message_and_traceback(run):
    with pytest.raises(ValueError, match="no such schedule"), run.hold_lock():
        raise ValueError("no such schedule")
    status = run.status()
    assert (status.state, status.message) == ("failed", "no such schedule")
    assert status.error.startswith("Traceback") and "test_run_folder.py" in status.error


def test_an_unknown_command_is_rejected(run):
    with pytest.raises(ValueError, match=r"stop.*'\.\./config'"):
        run.request("../config")


def test_metrics_are_read_from_the_offset_of_the_last_call(run):
    assert run.metrics() == ([], 0)
    run.append_metrics({"step": 10})
    records, offset = run.metrics()
    assert records == [{"step": 10}]
    with run.metrics_file.open("a") as file:
        file.write('{"step": 20, "lo')
        file.flush()
        assert run.metrics(offset) == ([], offset)  # still being written
        file.write('ss": 1}\n{"st')
    records, offset = run.metrics(offset)
    assert records == [{"step": 20, "loss": 1}]
    run.append_metrics({"step": 30})  # after the crash that tore that last line
    assert run.metrics(offset)[0] == [{"step": 30}]


def test_a_damaged_config_is_an_error_and_a_missing_one_is_empty(run):
    assert run.config() == {}
    run.path.mkdir()
    for text in ("{", "[1]", "3"):
        run.config_file.write_text(text)
        with pytest.raises(ValueError, match=r"config.json.*'run'"):
            run.config()


def test_runs_are_listed_newest_first_including_damaged_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_HOME", str(tmp_path))
    assert runs_dir() == tmp_path and list_runs(tmp_path / "nowhere") == []
    for name, created in (("b", 1.0), ("a", 3.0), ("c", 2.0), (".a.deleted", 9.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"created": created}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "holiday photos").mkdir()
    assert [run.id for run in list_runs(tmp_path)] == ["broken", "a", "c", "b"]


# ----------------------------------------------------------------------------
# Atomic files and folders


class Interrupted(Exception):
    pass


def put(path: Path, content: str | dict[str, str]) -> None:
    """Write a file with that text, or a folder with those files."""
    if isinstance(content, dict):
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    else:
        path.write_text(content)


def content(path: Path) -> str | dict[str, str] | None:
    """Return what is at `path`, in the form that `put` takes."""
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
def test_replacing_leaves_only_the_new_content(tmp_path, old, new):
    target = tmp_path / "deep" / "000004"
    if old is not None:
        target.parent.mkdir()
        put(target, old)
    with replacing(target) as aside:
        assert aside != target and aside.parent == target.parent  # a rename is atomic only on the same file system
        put(aside, new)
        assert content(target) == old  # readers see the old content until the end
    assert content(target) == new
    assert list(target.parent.iterdir()) == [target]


@FILES
def test_a_failure_while_writing_leaves_only_the_old_content(tmp_path, old, new):
    target = tmp_path / "000004"
    if old is not None:
        put(target, old)
    with pytest.raises(Interrupted), replacing(target) as aside:
        put(aside, new)
        raise Interrupted
    assert content(target) == old
    assert list(tmp_path.iterdir()) == ([target] if old is not None else [])


def test_a_failed_rename_restores_the_old_folder(tmp_path):
    # The simplest cause: the block wrote nothing. On Windows, an open file fails the same way.
    target = tmp_path / "000004"
    put(target, {"a": "old"})
    with pytest.raises(OSError), replacing(target):
        pass
    assert content(target) == {"a": "old"}
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_is_retried_while_a_reader_has_the_file_open(tmp_path, monkeypatch):
    # Windows rejects the rename while the file is open.
    rename, failures = os.replace, iter(range(3))

    def fail_at_first(source, target):
        if next(failures, None) is not None:
            raise PermissionError("in use")
        rename(source, target)

    monkeypatch.setattr("os.replace", fail_at_first)
    target = tmp_path / "status.json"
    put(target, "old")
    with replacing(target) as aside:
        put(aside, "new")
    assert content(target) == "new"


@pytest.mark.parametrize("leftover", ["aside", "old"])
def test_leftovers_of_a_killed_process_with_the_same_pid_are_overwritten(tmp_path, leftover):
    # In a container, each start of the training process may have the same pid.
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
    assert content(target) == {"a": "newest"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_never_sees_a_partial_file(tmp_path):
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


@pytest.mark.parametrize("target_exists", [True, False])
def test_tidy_deletes_temporary_files_and_restores_replaced_folders(tmp_path, target_exists):
    # A kill between the two renames of a folder leaves the old one under its temporary name.
    put(tmp_path / ".000004.123.old", {"a": "old"})
    put(tmp_path / ".000004.123.tmp", {"a": "half"})
    put(tmp_path / ".000008.77.tmp", {"a": "half"})
    put(tmp_path / ".mine", "not one of ours")
    if target_exists:
        put(tmp_path / "000004", {"a": "new"})
    remove_leftovers(tmp_path)
    assert content(tmp_path / "000004") == {"a": "new" if target_exists else "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "000004"]


def test_the_tail_is_limited_to_the_last_lines(tmp_path):
    run = RunFolder(tmp_path)
    assert run.tail() == ""
    run.log_file.write_bytes(b"\xff broken\n" + b"x" * 100_000 + b"\none\ntwo\n")
    assert run.tail(2) == "one\ntwo"
    assert len(run.tail(100)) < 70_000


def test_a_full_disk_is_recognized_by_errno_or_by_the_message_of_safetensors():
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_disk_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(ValueError("28"))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="this system has no permissions of this kind")
def test_an_unreadable_folder_does_not_hide_runs():
    """Such as lost+found at the root of a disk."""
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are not readable by other users
        place, user = Path(name), os.geteuid()
        run = RunFolder(place / "seen")
        run.update_status(state="finished")
        (run.path / "checkpoints" / "000002").mkdir(parents=True)
        (place / "lost+found").mkdir()
        closed = place / "lost+found", run.path / "checkpoints"
        place.chmod(0o755)
        for folder in closed:
            folder.chmod(0)
        try:
            if user == 0:  # root may read everything
                os.seteuid(65534)
            assert [found.id for found in list_runs(place)] == ["seen"]
            assert run.checkpoint_steps() == [] and run.status().state == "finished"
        finally:
            os.seteuid(user)
            for folder in closed:
                folder.chmod(0o755)
