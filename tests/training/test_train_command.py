"""Tests of `python -m dp train`: creating, interrupting and resuming a run from the command line."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from pages import exit_code
from tiny_runs import contents, make_pictures, shorten, undisturbed, until

from dp.data.report import DatasetReport
from dp.training import cli
from dp.training.presets import PRESETS, Settings
from dp.training.run_folder import RunFolder
from dp.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--image-size", "16", "--width", "16", "--depth", "1", "--batch", "4", "--save-every", "50"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Yield a folder with `images`: six images and a file that is not an image."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"DP_DEVICE": "cpu", "CPU_CORES": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    make_pictures(tmp_path / "images")
    (tmp_path / "images" / "notes.png").write_text("not an image")
    return tmp_path


def command(*arguments: str, **streams) -> subprocess.Popen:
    everything = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    return subprocess.Popen([sys.executable, "-m", "dp", "train", *arguments], start_new_session=True, **everything)


@pytest.fixture
def run_command(monkeypatch, capfd):
    """Return a function that runs the command in this process and returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr("os.nice", lambda more: None)
            patch.setattr("dp.training.cli.pause_on_interrupt", lambda run: None)
            for stream in ("stdout", "stderr"):  # which the command replaces
                patch.setattr(sys, stream, getattr(sys, stream))
            capfd.readouterr()
            code = exit_code(patch, cli, *arguments)
            sys.stdout.flush()
        output, errors = capfd.readouterr()
        return (1, output, f"{errors}{code}\n") if isinstance(code, str) else (code, output, errors)

    return run


def open_run(*arguments: str) -> RunFolder:
    parser = argparse.ArgumentParser()
    cli.add_options(parser)
    return cli.open_run(parser.parse_args(arguments))


def test_images_become_a_run_that_can_be_resumed_and_extended(place, run_command):
    code, output, errors = run_command("images", "--out", "runs/mine", "--prepare", *TINY, "--steps", "9")
    assert (code, errors) == (0, ""), errors
    assert output.startswith("6 images accepted") and "notes.png: not a readable image" in output
    run = RunFolder(place / "runs" / "mine")
    assert [path.name for path in (place / "runs").iterdir()] == ["mine"] and run.status().state == "new"
    config = run.config()
    settings = dict(image_size=16, width=16, depth=1, batch=4, save_every=50, steps=9, name="images")
    assert Settings.from_config(config) == replace(PRESETS["quick"], **settings)
    assert (config["name"], config["dataset"]) == ("images", {"name": "images", "count": 6})
    assert len(DatasetReport.load(run.dataset).accepted) == 6

    assert run_command("runs/mine")[:2] == (0, "mine: finished at step 9\n")
    assert run.checkpoint_steps() == [9] and run.sample(9).is_file()
    assert contents(run.checkpoint(9)) == contents(undisturbed(run, place / "other"))
    # The same settings, or some of them, resume the run; other settings are rejected; more steps extend it.
    for again in ([*TINY, "--steps", "9"], ["--preset", "quick", *TINY, "--steps", "9"], ["--steps", "9"], []):
        assert open_run(str(place / "nowhere"), "--out", str(run.path), *again).path == run.path
        assert open_run(str(run.path), *again).path == run.path
    for other, words in ((["--steps", "8"], "steps 9, not 8"), (["--preset", "evening"], "image size 16, not 32")):
        with pytest.raises(ValueError, match=f"was created with {words}"):
            open_run(str(run.path), *other)
    with pytest.raises(ValueError, match="was created with batch 4, not 5"):
        open_run(str(run.path), "--steps", "12", "--batch", "5")
    assert run_command("runs/mine", "--steps", "12")[:2] == (0, "mine: finished at step 12\n")
    assert run.checkpoint_steps() == [9, 12] and run.config()["trainer"]["lr_decay_steps"] == 9
    run.update_status(state="paused")
    with pytest.raises(ValueError, match="'images' is paused: only a finished run can be trained longer"):
        open_run(str(run.path), "--steps", "13")


def test_a_finished_run_is_made_fast_in_a_new_run(place, run_command):
    run_command("images", "--out", "runs/mine", "--prepare", *TINY, "--steps", "10")
    fast = ["runs/mine", "--fast", "--out", "runs/fast"]
    code, _, errors = run_command(*fast)
    assert (code, errors) == (2, "the run 'images' is new: only the model of a finished run can be made fast\n")
    assert run_command("runs/mine")[0] == 0
    for wrong in ([*fast[:2]], [*fast, "--steps", "3"]):
        code, _, errors = run_command(*wrong)
        assert code == 2 and errors.startswith("--fast takes a finished run and --out")
    assert run_command(*fast)[:2] == (0, "fast: finished at step 2\n")  # 15 % of the steps
    run = RunFolder(place / "runs" / "fast")
    assert run.name == "images fast" and run.checkpoint_steps() == [1, 2]
    assert run_command(*fast)[:2] == (0, "fast: finished at step 2\n")  # the same command resumes it


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently")
def test_ctrl_c_saves_the_run_and_the_same_command_resumes_it(place, run_command, monkeypatch):
    terminal, end = pytest.importorskip("pty").openpty()
    subprocess.run(["stty", "rows", "24", "cols", "100"], stdin=end, check=True)  # room for the progress bar
    arguments = ["images", "--out", "runs/mine", *TINY, "--steps", "100000"]  # longer than any test
    run = RunFolder(place / "runs" / "mine")
    with command(*arguments, stdout=end, stderr=end) as process:
        os.close(end)
        until(lambda: run.metrics()[0])  # after ten steps
        os.killpg(process.pid, signal.SIGINT)
        output = read_all(terminal)
        assert process.wait(150) == 0
    assert "%|" in output  # a progress bar, as this is a terminal
    assert "the same command resumes the run" in output and "Traceback" not in output
    status = run.status()
    assert status.state == "paused" and 0 < status.step == run.checkpoint_steps()[-1] < 100_000
    assert f"mine: paused at step {status.step}" in output

    def train_step_and_pause(trainer, train_step=Trainer.train_step):
        if trainer.step == status.step + 2:
            run.request("pause")
        return train_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step_and_pause)
        assert run_command(*arguments)[:2] == (0, f"mine: paused at step {status.step + 3}\n")
    total = status.step + 6
    shorten(run, total)
    assert run_command("runs/mine")[:2] == (0, f"mine: finished at step {total}\n")
    assert contents(run.checkpoint(total)) == contents(undisturbed(run, place / "other"))


def read_all(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 4096):
            parts.append(part)
    except OSError:  # the other side has closed it
        os.close(terminal)
    return b"".join(parts).decode()


def test_waiting_for_the_device_is_reported_and_can_be_interrupted(place, run_command):
    assert run_command("images", "--out", "runs/mine", "--prepare", *TINY)[0] == 0
    run = RunFolder(place / "runs" / "mine")
    with FileLock(place / "runs" / ".cpu.lock"), command("runs/mine") as process:
        assert process.stdout.readline() == "mine: queued: starts when the current run ends\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(150) == 0
    assert run.status().state == "paused" and run.checkpoint_steps() == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["images"], "there is no training run in 'images'; to create one from the images there, add --out"),
        (["images/0.png", "images/1.png"], "only one run can be trained at a time"),
        (["nothing", "--out", "runs/mine"], "there is no file or folder 'nothing'"),
        (["images/notes.png", "--out", "runs/mine"], "no usable image (notes.png: not a readable image"),
        (["images", "--out", "images"], "'images' is neither empty nor a training run"),
        (["images", "--out", "runs/mine", "--width", "17"], "must be a multiple of 16, got 17"),
        (["images", "--out", "runs/mine", "--steps", "0"], "Steps must be a whole number from 1 to"),
        (["images", "--out", "runs/mine", "--lr", "nan"], "Learning rate must be a number from"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(place, run_command, arguments, words):
    code, output, errors = run_command(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert words in errors and not (place / "runs" / "mine").exists()


def test_a_damaged_config_is_reported(place, run_command):
    assert run_command("images", "--out", "runs/mine", "--prepare", *TINY)[0] == 0
    (place / "runs" / "mine" / "config.json").write_text("{")
    code, _, errors = run_command("runs/mine")
    assert code != 0 and "config.json" in errors and "Traceback" not in errors


def test_the_real_command_documents_every_setting_and_reports_errors(place):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "dp", "train", "--help"], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0 and time.monotonic() - began < 30
    names = {name.replace("_", "-") for name in vars(Settings())} - {"flips"} | {"no-flips", "out", "preset", "prepare"}
    assert names <= set(re.findall(r"--([\w-]+)", done.stdout))
    done = subprocess.run([sys.executable, "-m", "dp", "train", "a", "b"], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "only one run" in done.stderr
