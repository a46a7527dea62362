"""dp.runs: what a run says of itself, to whoever reads its folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from dp.files import replacing
from dp.runs import STATES, Busy, RunFolder, home, runs_in

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def process_holding(run: RunFolder):
    """Another process that holds the run's lock, and is killed at the end."""
    script = f"from dp.runs import RunFolder; run = RunFolder({str(run.path)!r})\n"
    script += "with run.held(): print('held', flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


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


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("reported", ["queued", "preparing", "running"])
def test_a_run_is_alive_as_long_as_its_lock_is_held_and_then_lost(run, reported):
    run.report(state=reported, step=7, heartbeat=time.time())
    with process_holding(run) as process:
        status = run.status()
        assert (status["state"], status["is_responding"], status["step"]) == (reported, True, 7)
        run.ask("pause")
        assert run.status()["state"] == "pausing"
        run.ask("stop")
        assert run.status()["state"] == "stopping"
        process.kill()
        process.wait()
        assert run.status()["state"] == "lost"
    assert run.status()["is_responding"] is False


@pytest.mark.parametrize("reported", ["paused", "stopped", "finished", "failed"])
def test_an_ended_run_stays_what_it_was(run, reported):
    run.report(state=reported)
    run.ask("stop")  # too late
    assert run.status()["state"] == reported


def test_a_run_that_nobody_started_is_new_and_every_fact_has_its_key(run):
    status = run.status()
    assert status["state"] == "new"
    keys = {"step", "total", "loss", "images_per_s", "heartbeat", "started", "message", "error", "is_responding", "pid"}
    assert status.keys() >= keys
    assert {"new", "queued", "lost", "pausing"} < set(STATES)


def test_a_silent_process_is_said_not_to_respond_and_is_alive_all_the_same(run):
    run.report(state="running", heartbeat=time.time() - 3600)
    with process_holding(run):
        status = run.status()
    assert (status["state"], status["is_responding"]) == ("running", False)


def test_a_damaged_status_is_no_obstacle(run):
    run.report(state="running")
    run.status_file.write_text('{"state": "runn')
    assert run.status()["state"] == "lost"
    with process_holding(run):
        assert run.status()["state"] == "preparing"
    run.report(step=3)
    assert run.status()["step"] == 3


def test_a_report_keeps_what_it_does_not_name(run):
    run.report(state="running", step=1)
    run.report(step=2)
    assert json.loads(run.status_file.read_text()) == {"state": "running", "step": 2}


def test_only_one_process_holds_a_run(run, monkeypatch):
    monkeypatch.setattr("dp.runs.LEAVING_S", 0.1)
    with process_holding(run), pytest.raises(Busy, match="'run'"), run.held():
        pass
    with run.held(), RunFolder(run.path).held():  # further in, it is the same one
        assert run.is_alive()
    assert not run.is_alive()


def test_a_new_holder_forgets_what_was_asked_and_clears_what_lies_about(run):
    run.report(state="lost")
    for verb in ("stop", "pause", "save", "sample"):
        run.ask(verb)
    (run.path / "checkpoints" / ".000004.123.tmp").mkdir(parents=True)
    with run.held():
        assert not any(run.asked(verb) for verb in ("stop", "pause", "save", "sample"))
        assert list((run.path / "checkpoints").iterdir()) == []


def test_an_error_is_reported_with_its_last_words(run):
    with pytest.raises(ValueError, match="no such schedule"), run.held():
        raise ValueError("no such schedule")
    status = run.status()
    assert (status["state"], status["message"]) == ("failed", "no such schedule")
    assert status["error"].startswith("Traceback") and "test_runs.py" in status["error"]


def test_a_run_cannot_be_asked_for_anything_else(run):
    with pytest.raises(ValueError, match=r"stop.*'\.\./config'"):
        run.ask("../config")


def test_metrics_are_read_on_from_where_the_last_look_ended(run):
    assert run.metrics() == ([], 0)
    run.log({"step": 10})
    records, offset = run.metrics()
    assert records == [{"step": 10}]
    with run.metrics_file.open("a") as file:
        file.write('{"step": 20, "lo')
        file.flush()
        assert run.metrics(offset) == ([], offset)  # still being written
        file.write('ss": 1}\n{"st')
    records, offset = run.metrics(offset)
    assert records == [{"step": 20, "loss": 1}]
    run.log({"step": 30})  # after the crash that tore that last line
    assert run.metrics(offset)[0] == [{"step": 30}]


def test_a_damaged_config_is_told_by_name_and_none_is_empty(run):
    assert run.config() == {}
    run.path.mkdir()
    for text in ("{", "[1]", "3"):
        run.config_file.write_text(text)
        with pytest.raises(ValueError, match=r"config.json.*'run'"):
            run.config()


def test_the_runs_of_a_folder_come_newest_first_and_the_damaged_among_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_HOME", str(tmp_path))
    assert home() == tmp_path and runs_in(tmp_path / "nowhere") == []
    for name, created in (("b", 1.0), ("a", 3.0), ("c", 2.0), (".a.deleted", 9.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"created": created}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "holiday pictures").mkdir()
    assert [run.id for run in runs_in(tmp_path)] == ["broken", "a", "c", "b"]
