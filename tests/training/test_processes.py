"""dp.training.processes and dp.training.worker: runs as processes, that nothing but their folder ties to whoever
started them.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from forks import forking
from tiny_runs import (
    CONFIG,
    NETWORK,
    TRAINER,
    contents,
    ended,
    is_gone,
    kill,
    make_run,
    no_process_left_behind,
    shorten,
    state,
    undisturbed,
    until,
)

from dp import DiffusionPolicy
from dp.training import processes
from dp.training.run_folder import RunFolder
from dp.training.status import ACTIVE_STATES
from dp.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = dict(train_num_steps=1_000_000, save_and_sample_every=1000)


@pytest.fixture
def tmp_home(tmp_path, monkeypatch):
    """A folder for `make_run`. Whatever process is started from here computes on one thread of the CPU, as these tests
    do, so that sums have one order; and it is gone at the end. Training processes are forked.
    """
    monkeypatch.setenv("DP_DEVICE", "cpu")
    monkeypatch.setenv("CPU_CORES", "1")
    with forking(), no_process_left_behind(tmp_path / "home"):
        yield tmp_path


@pytest.fixture
def run(tmp_home):
    return make_run(tmp_home)


# ----------------------------------------------------------------------------
# The folder


def test_a_new_run_takes_its_pictures_along(run, tmp_home):
    assert run.path.parent == tmp_home / "home" and run.id.startswith("my-cats-")
    config = run.config()
    assert config["name"] == "My cats!" and config["network"] == NETWORK and config["created"] > 0
    assert (run.dataset / "images.npy").is_file() and not (tmp_home / "prepared").exists()
    assert state(run) == "new"
    with pytest.raises(ValueError, match="prepared"):
        processes.create(tmp_home / "home", CONFIG, tmp_home / "prepared")


def test_a_duplicate_has_the_same_pictures_and_the_changes(run, tmp_home):
    other = processes.duplicate(run, tmp_home / "home", name="Slower", trainer={"train_lr": 1e-5})
    assert other.id != run.id
    assert other.config()["trainer"] == TRAINER | {"train_lr": 1e-5} and other.config()["name"] == "Slower"
    assert run.config()["trainer"] == TRAINER
    processes.delete(run)
    assert not run.path.exists() and [path.name for path in (tmp_home / "home").iterdir()] == [other.id]
    assert np.load(other.dataset / "images.npy").shape == (6, 8, 8, 3)  # a link is as good as a copy


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_a_name_is_short_and_there(run, name):
    with pytest.raises(ValueError, match="80"):
        processes.rename(run, name)
    processes.rename(run, "Dogs / ../ 犬")
    assert run.config()["name"] == "Dogs / ../ 犬" and run.path.exists()


def test_nothing_can_be_asked_of_a_run_that_does_not_go_on(run):
    for ask in (processes.pause, processes.save_now, processes.sample_now, processes.stop):
        with pytest.raises(ValueError, match=r"My cats!.*new"):
            ask(run)
    run.update_status(state="running")
    assert state(run) == "interrupted"
    processes.stop(run)
    assert state(run) == "stopped"


def test_a_run_that_is_going_on_is_not_started_again(run):
    with run.hold_lock():
        with pytest.raises(ValueError, match="already training"):
            processes.start(run)
        processes.stop(run)
        assert RunFolder(run.path).is_requested("stop")


def extended(run: RunFolder, steps: int) -> dict[str, torch.Tensor]:
    """Return the weights of a finished run after it was extended to `steps`, in this process."""
    processes.extend(run, steps)
    assert (state(run), run.status()["total"]) == ("paused", steps)
    trainer = Trainer.from_run(run.path)
    trainer.resume()
    assert 0 < trainer.step < steps and trainer.train() == "finished"
    return DiffusionPolicy.from_pretrained(run.checkpoint(steps)).state_dict()


def test_a_finished_run_goes_on_beyond_its_horizon_and_is_the_same_run_before_it(tmp_home):
    run = make_run(tmp_home, train_num_steps=20, lr_decay_steps=20, save_and_sample_every=10)
    longer = processes.duplicate(run, tmp_home / "longer", trainer={"train_num_steps": 50})
    before = contents(undisturbed(run, tmp_home / "other"))["model.safetensors"]
    straight = undisturbed(longer, tmp_home / "straight")
    run = RunFolder(next((tmp_home / "other").iterdir()))
    weights = DiffusionPolicy.from_pretrained(run.checkpoint(20)).state_dict()

    later = extended(run, 30)
    assert not any(torch.equal(later[name], value) for name, value in weights.items() if value.ndim > 1)
    assert not torch.equal(later["model.latents"], extended(run, 50)["model.latents"])
    assert contents(run.checkpoint(20))["model.safetensors"] == before
    assert contents(run.checkpoint(50)) == contents(straight)  # told at once or later, it is the same run
    rates = {record["step"]: record["lr"] for record in run.metrics()[0] if "lr" in record}
    assert rates[20] < rates[10] and {rates[30], rates[40], rates[50]} == {0.1 * TRAINER["train_lr"]}
    config = run.config()["trainer"]
    assert (config["train_num_steps"], config["lr_decay_steps"], config["lr_warmup_steps"]) == (50, 20, 3)
    assert run.status()["message"] == "finished at step 50 of 50"


def test_a_run_that_was_rolled_back_keeps_its_factor_beyond_the_horizon(run):
    trainer = Trainer.from_run(run.path)
    trainer.lr_decay_steps, trainer.lr_factor = 8, 0.25
    assert trainer.learning_rate(8) == trainer.learning_rate(999) == pytest.approx(0.025 * TRAINER["train_lr"])


def test_only_a_finished_run_can_be_extended_and_only_by_more_steps(run, tmp_home):
    with pytest.raises(ValueError, match="'My cats!' is new: only a finished run"):
        processes.extend(run, 100)
    run = RunFolder(undisturbed(run, tmp_home / "other").parent.parent)
    config, status = run.config(), run.status()
    for steps in (8, 1, -1, 10**8, 10**400, 9.5, math.nan, True, "20", None):
        with pytest.raises(ValueError, match="Steps must be a whole number from 9 to 10000000"):
            processes.extend(run, steps)
    for file in run.path.glob("checkpoints/*/training-state/state.json"):
        file.unlink()
    with pytest.raises(ValueError, match="no training state left to resume from"):  # it would begin anew
        processes.extend(run, 20)
    assert (run.config(), run.status()) == (config, status)


# ----------------------------------------------------------------------------
# The process


def new_milestone(run: RunFolder) -> None:
    """Wait until the run, which has just been started, comes to its next milestone."""
    known = run.checkpoint_steps()
    until(lambda: run.checkpoint_steps() != known)


def test_paused_resumed_stopped_and_resumed_it_is_the_undisturbed_run(tmp_home):
    run = make_run(tmp_home, train_num_steps=1_000_000, save_and_sample_every=20)
    # It is started by an app that is killed right away.
    script = "import sys, time; from dp.training import processes, run_folder\n"
    script += f"processes.start(run_folder.RunFolder({str(run.path)!r})); print('started', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout.readline() == "started\n"
        app.kill()
    run = RunFolder(run.path)  # another app, which knows nothing but the folder
    pid = run.status()["pid"]
    assert state(run) in ("queued", "preparing", "running") and pid not in (app.pid, os.getpid())
    processes.sample_now(run)
    processes.save_now(run)
    with pytest.raises(ValueError, match="stop it first"):
        processes.delete(run)
    until(lambda: not run.is_requested("save") and not run.is_requested("sample"))
    assert run.sample(0).exists() and run.checkpoint_steps()[0] == 0
    assert run.status()["is_responding"]
    if hasattr(os, "getpriority"):  # whoever samples on this processor comes first
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    new_milestone(run)
    processes.pause(run)
    assert ended(run) == "paused"
    assert 0 < run.status()["step"] == run.checkpoint_steps()[-1]

    processes.start(run)
    new_milestone(run)
    processes.stop(run)
    assert ended(run) == "stopped"
    until(lambda: is_gone(run.status()["pid"]))  # and no zombie: somebody has waited for it
    total = run.status()["step"] + 20
    shorten(run, total)
    processes.start(run)
    assert ended(run) == "finished"
    assert run.status()["step"] == run.status()["total"] == total
    assert contents(run.checkpoint(total)) == contents(undisturbed(run, tmp_home / "other"))
    assert set(range(20, total + 1, 20)) <= set(run.checkpoint_steps())
    events = [record["event"] for record in run.metrics()[0] if "event" in record]
    assert len(events) == 2 and all(event.startswith("resumed from step") for event in events)


def killed_and_resumed(tmp_home, moments) -> int:
    """Kill -9 at each moment, which is a function that waits for it; then let the run finish, and compare. Returns how
    many kills left something half-written.
    """
    run, torn = make_run(tmp_home, train_num_steps=1_000_000, save_and_sample_every=20), 0
    for wait in moments:
        processes.start(run)
        wait(run)
        kill(run)
        assert state(run) == "interrupted"
        for milestone in run.checkpoint_steps()[-1:]:
            DiffusionPolicy.from_pretrained(run.checkpoint(milestone))
        torn += bool(list((run.path / "checkpoints").glob(".*")))
    total = (run.checkpoint_steps() or [0])[-1] + 20
    shorten(run, total)
    processes.start(run)
    assert ended(run) == "finished"
    assert contents(run.checkpoint(total)) == contents(undisturbed(run, tmp_home / "other"))
    assert not list((run.path / "checkpoints").glob(".*"))  # all of it was cleared away
    assert [m for m in run.checkpoint_steps() if m % 20 == 0] == list(range(20, total + 1, 20))
    for milestone in run.checkpoint_steps():
        DiffusionPolicy.from_pretrained(run.checkpoint(milestone))
    return torn


def at_the_beginning(run: RunFolder) -> None:
    until(lambda: state(run) == "running")
    time.sleep(random.uniform(0, 0.02))


def after_a_milestone(run: RunFolder) -> None:
    new_milestone(run)
    time.sleep(random.uniform(0, 0.05))


def while_saving(run: RunFolder) -> None:
    new_milestone(run)
    until(lambda: list((run.path / "checkpoints").glob(".*.tmp")))


def test_killed_at_any_moment_it_is_the_undisturbed_run(tmp_home):
    killed_and_resumed(tmp_home, [at_the_beginning, while_saving, after_a_milestone])


@pytest.mark.soak
def test_killed_at_25_moments_it_is_the_undisturbed_run(tmp_home):
    torn = 0
    for _ in range(5):
        moments = [at_the_beginning, while_saving, while_saving, after_a_milestone, after_a_milestone]
        torn += killed_and_resumed(tmp_home, random.sample(moments, 5))
        shutil.rmtree(tmp_home / "other")
    assert torn > 3  # it was hit in the middle of saving, too


def test_two_runs_started_at_once_queue_and_neither_breaks(tmp_home):
    first, second = make_run(tmp_home, "one", **ENDLESS), make_run(tmp_home, "two")
    processes.start(first)
    until(lambda: state(first) in ("preparing", "running"))
    with forking(False):  # to see what it has loaded
        processes.start(second)
    until(lambda: "waiting" in (second.status()["message"] or ""))
    assert state(second) == "queued" and second.status()["is_responding"]
    # Two users press Start on the same run: there is one process, and the other one ends with a sentence.
    command = [sys.executable, "-m", "dp", "train", str(second.path)]
    twice = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert twice.returncode == 1 and "already training" in twice.stderr and "Traceback" not in twice.stderr
    with pytest.raises(ValueError, match="already training"):
        processes.start(second)
    maps = Path(f"/proc/{second.status()['pid']}/maps")
    if maps.exists():  # it holds no memory while it waits
        assert "libtorch" not in maps.read_text()
    processes.pause(second)
    assert ended(second) == "paused" and second.checkpoint_steps() == []
    processes.start(second)
    until(lambda: state(second) == "queued")
    processes.stop(first)
    assert ended(first) == "stopped"
    assert ended(second) == "finished"  # the device is free


def deleted(run: RunFolder) -> None:
    """Delete the folder as a person would, while a process may be writing into it."""
    while run.path.exists():
        shutil.rmtree(run.path, ignore_errors=True)


def test_a_run_whose_folder_is_deleted_ends_and_leaves_no_ghost(tmp_home):
    run, waiting = make_run(tmp_home, **ENDLESS), make_run(tmp_home, "waiting")
    processes.start(run)
    until(lambda: state(run) == "running" and (run.status()["step"] or 0) > 0)
    processes.start(waiting)
    until(lambda: state(waiting) == "queued")
    for one in (waiting, run):
        pid = one.status()["pid"]
        deleted(one)
        until(lambda pid=pid: is_gone(pid))
    assert [path.name for path in (tmp_home / "home").iterdir()] == [".cpu.lock"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_does_not_keep_start_from_seeing_its_run(run, monkeypatch, hours):
    monkeypatch.setattr("dp.training.processes.START_TIMEOUT_S", 100)
    clock = time.time
    with FileLock(run.path.parent / ".cpu.lock"):  # the process waits for the device, and loads nothing
        for _ in range(2):  # again, after it has reported an end
            monkeypatch.setattr("time.time", lambda: clock() + hours * 3600)  # in this process alone
            processes.start(run)
            monkeypatch.setattr("time.time", clock)
            assert state(run) == "queued"
            until(lambda: run.status()["is_responding"])
            processes.pause(run)
            assert ended(run) == "paused"


def test_a_run_that_cannot_be_is_failed_with_a_sentence(tmp_home):
    run = make_run(tmp_home, train_lr=-1.0)
    processes.start(run)
    assert ended(run) == "failed"
    status = run.status()
    assert "train_lr" in status["message"] and "-1.0" in status["message"]
    assert "Traceback" in status["error"]
    until(lambda: run.tail(1) == status["message"])  # said once the run has been let go


def test_a_process_that_cannot_even_begin_is_told_at_once(run, monkeypatch):
    run.update_status(state="failed", started=time.time() - 60)  # by an earlier start
    monkeypatch.setattr("dp.training.processes.sys.executable", shutil.which("false"))
    with forking(False), pytest.raises(ValueError, match="ended at once: exit code 1"):
        processes.start(run)


def test_a_trial_says_how_long_a_step_takes_and_leaves_nothing(run):
    before = contents(run.path)
    with forking(False), processes.benchmark(run) as process:
        said = json.loads(process.communicate(timeout=150)[0])
    assert 0 < said["seconds_per_step"] < 10 and said["seconds_per_save"] > 0 and said["device"] == "cpu"
    assert contents(run.path) == before


def workers_of(run: RunFolder) -> list[int]:
    """The processes whose command names the run."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "-m dp train" in line and str(run.path) in line]


@pytest.mark.soak
@pytest.mark.parametrize("ask", [processes.pause, processes.stop, kill])
def test_two_processes_leave_together_and_go_on(tmp_home, ask):
    run = make_run(tmp_home, "two", processes=2, train_num_steps=400, save_and_sample_every=100)
    processes.start(run)
    new_milestone(run)
    workers = workers_of(run)
    assert len(workers) >= 3  # torchrun and its two
    ask(run)
    until(lambda: all(map(is_gone, workers)))
    assert ended(run) == {"pause": "paused", "stop": "stopped", "kill": "interrupted"}[ask.__name__]
    processes.start(run)
    assert ended(run) == "finished", run.tail()
    weights = [
        DiffusionPolicy.from_pretrained(folder).state_dict()
        for folder in (run.checkpoint(400), undisturbed(run, tmp_home / "o"))
    ]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-2, atol=1e-4)


def test_two_processes_train_what_one_does(tmp_home):
    settings = dict(train_num_steps=20, save_and_sample_every=10, gradient_accumulate_every=2, seed=3)
    two = make_run(tmp_home, "two", processes=2, **settings)
    processes.start(two)
    until(lambda: state(two) not in ACTIVE_STATES)
    assert state(two) == "finished", two.tail()
    assert two.status()["processes"] == 2
    one = RunFolder(undisturbed(two, tmp_home / "other").parent.parent)
    for ours, theirs in zip(two.metrics()[0], one.metrics()[0], strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["buckets"] == pytest.approx(theirs["buckets"], rel=1e-4)
    weights = [DiffusionPolicy.from_pretrained(run.checkpoint(20)).state_dict() for run in (one, two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-3, atol=1e-5)
    assert two.checkpoint_steps() == [10, 20]
