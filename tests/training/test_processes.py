"""Tests of dp.training.processes and dp.training.worker with real training processes."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
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
    """Yield a folder for `make_run`. Training processes are forked, compute on one CPU thread, as these tests do, for a
    fixed order of summation, and are killed at the end.
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


def test_creating_a_run_moves_the_dataset_into_it(run, tmp_home):
    assert run.path.parent == tmp_home / "home" and run.id.startswith("my-cats-")
    config = run.config()
    assert config["name"] == "My cats!" and config["network"] == NETWORK and config["created"] > 0
    assert (run.dataset / "images.npy").is_file() and not (tmp_home / "prepared").exists()
    assert state(run) == "new"
    with pytest.raises(ValueError, match="prepared"):
        processes.create(tmp_home / "home", CONFIG, tmp_home / "prepared")


def test_a_duplicate_has_the_same_images_and_the_changes(run, tmp_home):
    other = processes.duplicate(run, tmp_home / "home", name="Slower", trainer={"train_lr": 1e-5})
    assert other.id != run.id
    assert other.config()["trainer"] == TRAINER | {"train_lr": 1e-5} and other.config()["name"] == "Slower"
    assert run.config()["trainer"] == TRAINER
    processes.delete(run)
    assert not run.path.exists() and [path.name for path in (tmp_home / "home").iterdir()] == [other.id]
    assert np.load(other.dataset / "images.npy").shape == (6, 8, 8, 3)  # the hard link survives


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_an_empty_or_long_name_is_rejected(run, name):
    with pytest.raises(ValueError, match="80"):
        processes.rename(run, name)
    processes.rename(run, "Dogs / ../ 犬")
    assert run.config()["name"] == "Dogs / ../ 犬" and run.path.exists()


def test_a_run_that_is_not_training_rejects_commands(run):
    for ask in (processes.pause, processes.save_now, processes.sample_now, processes.stop):
        with pytest.raises(ValueError, match=r"My cats!.*new"):
            ask(run)
    run.update_status(state="running")
    assert state(run) == "interrupted"
    processes.stop(run)
    assert state(run) == "stopped"


def test_a_run_that_is_training_cannot_be_started_again(run):
    with run.hold_lock():
        with pytest.raises(ValueError, match="already training"):
            processes.start(run)
        processes.stop(run)
        assert RunFolder(run.path).is_requested("stop")


def extended(run: RunFolder, steps: int) -> dict[str, torch.Tensor]:
    """Extend a finished run to `steps`, train it in this process and return its weights."""
    processes.extend(run, steps)
    assert (state(run), run.status().total) == ("paused", steps)
    trainer = Trainer.from_run(run.path)
    trainer.resume()
    assert 0 < trainer.step < steps and trainer.train() == "finished"
    return DiffusionPolicy.from_pretrained(run.checkpoint(steps)).state_dict()


def test_an_extended_run_continues_beyond_its_horizon_and_keeps_its_earlier_steps(tmp_home):
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
    assert contents(run.checkpoint(50)) == contents(straight)  # as if it had been created with 50 steps
    rates = {record["step"]: record["lr"] for record in run.metrics()[0] if "lr" in record}
    assert rates[20] < rates[10] and {rates[30], rates[40], rates[50]} == {0.1 * TRAINER["train_lr"]}
    config = run.config()["trainer"]
    assert (config["train_num_steps"], config["lr_decay_steps"], config["lr_warmup_steps"]) == (50, 20, 3)
    assert run.status().message == "finished at step 50 of 50"


def test_a_rollback_also_lowers_the_learning_rate_beyond_the_horizon(run):
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
    with pytest.raises(ValueError, match="no training state left to resume from"):  # it would start over
        processes.extend(run, 20)
    assert (run.config(), run.status()) == (config, status)


# ----------------------------------------------------------------------------
# The process


def wait_for_checkpoint(run: RunFolder) -> None:
    """Wait until the run has a new checkpoint."""
    known = run.checkpoint_steps()
    until(lambda: run.checkpoint_steps() != known)


def test_a_run_paused_and_stopped_and_resumed_equals_an_uninterrupted_one(tmp_home):
    run = make_run(tmp_home, train_num_steps=1_000_000, save_and_sample_every=20)
    # The app that starts the run is killed right away.
    script = "import sys, time; from dp.training import processes, run_folder\n"
    script += f"processes.start(run_folder.RunFolder({str(run.path)!r})); print('started', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout.readline() == "started\n"
        app.kill()
    run = RunFolder(run.path)  # another app, which only knows the folder
    pid = run.status().pid
    assert state(run) in ("queued", "preparing", "running") and pid not in (app.pid, os.getpid())
    processes.sample_now(run)
    processes.save_now(run)
    with pytest.raises(ValueError, match="stop it first"):
        processes.delete(run)
    until(lambda: not run.is_requested("save") and not run.is_requested("sample"))
    assert run.sample(0).exists() and run.checkpoint_steps()[0] == 0
    assert run.status().is_responding
    if hasattr(os, "getpriority"):  # sampling on the same processor has priority
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    wait_for_checkpoint(run)
    processes.pause(run)
    assert ended(run) == "paused"
    assert 0 < run.status().step == run.checkpoint_steps()[-1]

    processes.start(run)
    wait_for_checkpoint(run)
    processes.stop(run)
    assert ended(run) == "stopped"
    until(lambda: is_gone(run.status().pid))  # not even a zombie is left
    total = run.status().step + 20
    shorten(run, total)
    processes.start(run)
    assert ended(run) == "finished"
    assert run.status().step == run.status().total == total
    assert contents(run.checkpoint(total)) == contents(undisturbed(run, tmp_home / "other"))
    assert set(range(20, total + 1, 20)) <= set(run.checkpoint_steps())
    events = [record["event"] for record in run.metrics()[0] if "event" in record]
    assert len(events) == 2 and all(event.startswith("resumed from step") for event in events)


def killed_and_resumed(tmp_home, moments) -> int:
    """Kill the run at each of `moments`, functions that wait for one, then let it finish and compare it with an
    uninterrupted run. Return how many kills left a partial checkpoint.
    """
    run, torn = make_run(tmp_home, train_num_steps=1_000_000, save_and_sample_every=20), 0
    for wait in moments:
        processes.start(run)
        wait(run)
        kill(run)
        assert state(run) == "interrupted"
        for step in run.checkpoint_steps()[-1:]:
            DiffusionPolicy.from_pretrained(run.checkpoint(step))
        torn += bool(list((run.path / "checkpoints").glob(".*")))
    total = (run.checkpoint_steps() or [0])[-1] + 20
    shorten(run, total)
    processes.start(run)
    assert ended(run) == "finished"
    assert contents(run.checkpoint(total)) == contents(undisturbed(run, tmp_home / "other"))
    assert not list((run.path / "checkpoints").glob(".*"))  # all partial checkpoints were deleted
    assert [step for step in run.checkpoint_steps() if step % 20 == 0] == list(range(20, total + 1, 20))
    for step in run.checkpoint_steps():
        DiffusionPolicy.from_pretrained(run.checkpoint(step))
    return torn


def at_the_beginning(run: RunFolder) -> None:
    until(lambda: state(run) == "running")
    time.sleep(random.uniform(0, 0.02))


def after_a_checkpoint(run: RunFolder) -> None:
    wait_for_checkpoint(run)
    time.sleep(random.uniform(0, 0.05))


def while_saving(run: RunFolder) -> None:
    wait_for_checkpoint(run)
    until(lambda: list((run.path / "checkpoints").glob(".*.tmp")))


def test_a_run_killed_at_any_moment_equals_an_uninterrupted_one(tmp_home):
    killed_and_resumed(tmp_home, [at_the_beginning, while_saving, after_a_checkpoint])


@pytest.mark.soak
def test_a_run_killed_at_25_moments_equals_an_uninterrupted_one(tmp_home):
    torn = 0
    for _ in range(5):
        moments = [at_the_beginning, while_saving, while_saving, after_a_checkpoint, after_a_checkpoint]
        torn += killed_and_resumed(tmp_home, random.sample(moments, 5))
        shutil.rmtree(tmp_home / "other")
    assert torn > 3  # some kills interrupted a save


def test_two_runs_started_at_once_are_queued(tmp_home):
    first, second = make_run(tmp_home, "one", **ENDLESS), make_run(tmp_home, "two")
    processes.start(first)
    until(lambda: state(first) == "running")
    os.kill(first.status().pid, signal.SIGSTOP)  # it has the device, and need not use the processor meanwhile
    with forking(False):  # a fork would have torch loaded
        processes.start(second)
    until(lambda: "starts when" in (second.status().message or ""))
    assert state(second) == "queued" and second.status().is_responding
    # If two users start the same run, the second process exits with an error message.
    command = [sys.executable, "-m", "dp", "train", str(second.path)]
    twice = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert twice.returncode == 1 and "already training" in twice.stderr and "Traceback" not in twice.stderr
    with pytest.raises(ValueError, match="already training"):
        processes.start(second)
    maps = Path(f"/proc/{second.status().pid}/maps")
    if maps.exists():  # torch is not loaded while the run is queued
        assert "libtorch" not in maps.read_text()
    processes.pause(second)
    assert ended(second) == "paused" and second.checkpoint_steps() == []
    processes.start(second)
    until(lambda: state(second) == "queued")
    os.kill(first.status().pid, signal.SIGCONT)
    processes.stop(first)
    assert ended(first) == "stopped"
    assert ended(second) == "finished"  # the device is free


def deleted(run: RunFolder) -> None:
    """Delete the folder while a process may be writing into it."""
    while run.path.exists():
        shutil.rmtree(run.path, ignore_errors=True)


def test_the_process_of_a_deleted_run_exits_without_recreating_its_folder(tmp_home):
    run, waiting = make_run(tmp_home, **ENDLESS), make_run(tmp_home, "waiting")
    processes.start(run)
    until(lambda: state(run) == "running" and (run.status().step or 0) > 0)
    processes.start(waiting)
    until(lambda: state(waiting) == "queued")
    for one in (waiting, run):
        pid = one.status().pid
        deleted(one)
        until(lambda pid=pid: is_gone(pid))
    assert [path.name for path in (tmp_home / "home").iterdir()] == [".cpu.lock"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_start_notices_its_process_when_the_clock_is_changed(run, monkeypatch, hours):
    monkeypatch.setattr("dp.training.processes.START_TIMEOUT_S", 100)
    clock = time.time
    with FileLock(run.path.parent / ".cpu.lock"):  # the process waits for the device and loads nothing
        for _ in range(2):  # the second time, a status exists
            monkeypatch.setattr("time.time", lambda: clock() + hours * 3600)  # in this process alone
            processes.start(run)
            monkeypatch.setattr("time.time", clock)
            assert state(run) == "queued"
            until(lambda: run.status().is_responding)
            processes.pause(run)
            assert ended(run) == "paused"


def test_an_invalid_run_fails_with_its_message(tmp_home):
    run = make_run(tmp_home, train_lr=-1.0)
    processes.start(run)
    assert ended(run) == "failed"
    status = run.status()
    assert "train_lr" in status.message and "-1.0" in status.message
    assert "Traceback" in status.error
    until(lambda: run.tail(1) == status.message)  # printed after the lock was released


def test_a_process_that_exits_at_once_is_an_error(run, monkeypatch):
    run.update_status(state="failed", started=time.time() - 60)  # from an earlier start
    monkeypatch.setattr("dp.training.processes.sys.executable", shutil.which("false"))
    with forking(False), pytest.raises(ValueError, match="ended at once: exit code 1"):
        processes.start(run)


def test_a_benchmark_measures_a_step_and_leaves_no_files(run):
    before = contents(run.path)
    with processes.benchmark(run) as process:
        result = json.loads(process.communicate(timeout=150)[0])
    assert 0 < result["seconds_per_step"] < 10 and result["seconds_per_save"] > 0 and result["device"] == "cpu"
    assert contents(run.path) == before


def worker_pids(run: RunFolder) -> list[int]:
    """Return the ids of the processes whose command line contains the run folder."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "-m dp train" in line and str(run.path) in line]


@pytest.mark.soak
@pytest.mark.parametrize("ask", [processes.pause, processes.stop, kill])
def test_two_processes_exit_together_and_resume(tmp_home, ask):
    run = make_run(tmp_home, "two", processes=2, train_num_steps=400, save_and_sample_every=100)
    with forking(False):
        processes.start(run)
    wait_for_checkpoint(run)
    workers = worker_pids(run)
    assert len(workers) >= 3  # torchrun and its two workers
    ask(run)
    until(lambda: all(map(is_gone, workers)))
    assert ended(run) == {"pause": "paused", "stop": "stopped", "kill": "interrupted"}[ask.__name__]
    with forking(False):
        processes.start(run)
    assert ended(run) == "finished", run.tail()
    weights = [
        DiffusionPolicy.from_pretrained(folder).state_dict()
        for folder in (run.checkpoint(400), undisturbed(run, tmp_home / "o"))
    ]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-2, atol=1e-4)


def test_two_processes_train_the_same_model_as_one(tmp_home):
    settings = dict(train_num_steps=20, save_and_sample_every=10, gradient_accumulate_every=2, seed=3)
    two = make_run(tmp_home, "two", processes=2, **settings)
    processes.start(two)
    until(lambda: state(two) not in ACTIVE_STATES)
    assert state(two) == "finished", two.tail()
    assert two.status().processes == 2
    one = RunFolder(undisturbed(two, tmp_home / "other").parent.parent)
    for first, second in zip(two.metrics()[0], one.metrics()[0], strict=True):
        assert first["step"] == second["step"] and first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["buckets"] == pytest.approx(second["buckets"], rel=1e-4)
    weights = [DiffusionPolicy.from_pretrained(run.checkpoint(20)).state_dict() for run in (one, two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-3, atol=1e-5)
    assert two.checkpoint_steps() == [10, 20]
