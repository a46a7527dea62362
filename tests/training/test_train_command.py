"""`python -m dp train PICTURES --out RUN`: a run begun, interrupted and gone on with from the command line."""

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
from tiny_runs import contents, make_pictures, undisturbed, until

from dp.data.report import Findings
from dp.training import cli
from dp.training.presets import PRESETS, Settings
from dp.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--image-size", "16", "--width", "16", "--depth", "1", "--batch", "4", "--save-every", "50"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with six pictures, and one file that is none, in `pictures`."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"DP_DEVICE": "cpu", "CPU_CORES": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    make_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "notes.png").write_text("no picture")
    return tmp_path


def command(*arguments: str, **streams) -> subprocess.Popen:
    everything = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    return subprocess.Popen([sys.executable, "-m", "dp", "train", *arguments], start_new_session=True, **everything)


@pytest.fixture
def ran(monkeypatch, capfd):
    """A function that runs the command in this process, and returns its exit code, what it said and its complaint."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr("os.nice", lambda more: None)
            patch.setattr("dp.training.cli.pause_on_interrupt", lambda run: None)
            for stream in ("stdout", "stderr"):  # the command replaces them
                patch.setattr(sys, stream, getattr(sys, stream))
            capfd.readouterr()
            code = exit_code(patch, cli, *arguments)
            sys.stdout.flush()
        said, complaint = capfd.readouterr()
        return (1, said, f"{complaint}{code}\n") if isinstance(code, str) else (code, said, complaint)

    return run


def open_run(*arguments: str) -> RunFolder:
    parser = argparse.ArgumentParser()
    cli.add_options(parser)
    return cli.open_run(parser.parse_args(arguments))


def test_pictures_become_a_run_that_anything_else_can_go_on_with(place, ran):
    code, said, complaint = ran("pictures", "--out", "runs/mine", "--prepare", *TINY, "--steps", "9")
    assert (code, complaint) == (0, ""), complaint
    assert said.startswith("6 images accepted") and "notes.png: not a picture" in said
    run = RunFolder(place / "runs" / "mine")
    assert [path.name for path in (place / "runs").iterdir()] == ["mine"] and run.status()["state"] == "new"
    config = run.config()
    asked = dict(image_size=16, width=16, depth=1, batch=4, save_every=50, steps=9, name="pictures")
    assert Settings.from_config(config) == replace(PRESETS["quick"], **asked)
    assert (config["name"], config["dataset"]) == ("pictures", {"name": "pictures", "count": 6})
    assert len(Findings.load(run.dataset).used) == 6

    assert ran("runs/mine")[:2] == (0, "mine: finished at step 9\n")
    assert run.checkpoint_steps() == [9] and run.sample(9).is_file()
    assert contents(run.checkpoint(9)) == contents(undisturbed(run, place / "other"))
    # The same command again, and a part of it, are the same run; another number would be another; more steps go on.
    for again in ([*TINY, "--steps", "9"], ["--preset", "quick", *TINY, "--steps", "9"], ["--steps", "9"], []):
        assert open_run(str(place / "nowhere"), "--out", str(run.path), *again).path == run.path
        assert open_run(str(run.path), *again).path == run.path
    for other, words in ((["--steps", "8"], "steps 9, not 8"), (["--preset", "evening"], "image size 16, not 32")):
        with pytest.raises(ValueError, match=f"was created with {words}"):
            open_run(str(run.path), *other)
    with pytest.raises(ValueError, match="was created with batch 4, not 5"):
        open_run(str(run.path), "--steps", "12", "--batch", "5")
    assert ran("runs/mine", "--steps", "12")[:2] == (0, "mine: finished at step 12\n")
    assert run.checkpoint_steps() == [9, 12] and run.config()["trainer"]["lr_decay_steps"] == 9
    run.update_status(state="paused")
    with pytest.raises(ValueError, match="'pictures' is paused: only a finished run can be trained longer"):
        open_run(str(run.path), "--steps", "13")


@pytest.mark.skipif(os.name == "nt", reason="another way to press Ctrl-C")
def test_interrupted_in_a_terminal_it_saves_and_the_same_command_goes_on(place, ran):
    ours, theirs = pytest.importorskip("pty").openpty()
    subprocess.run(["stty", "rows", "24", "cols", "100"], stdin=theirs, check=True)  # a bar has to fit
    asked = ["pictures", "--out", "runs/mine", *TINY, "--steps", "100"]
    run = RunFolder(place / "runs" / "mine")
    with command(*asked, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        until(lambda: (run.status()["step"] or 0) > 0)
        os.killpg(process.pid, signal.SIGINT)
        said = read_all(ours)
        assert process.wait(150) == 0
    assert "%|" in said  # a bar, where somebody sees it
    assert "the same command resumes the run" in said and "Traceback" not in said
    status = run.status()
    assert status["state"] == "paused" and 0 < status["step"] == run.checkpoint_steps()[-1] < 100
    assert f"mine: paused at step {status['step']}" in said

    code, said, _ = ran(*asked)
    assert (code, said) == (0, "mine: finished at step 100\n")
    assert contents(run.checkpoint(100)) == contents(undisturbed(run, place / "other"))


def read_all(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 4096):
            parts.append(part)
    except OSError:  # closed by the other side
        os.close(terminal)
    return b"".join(parts).decode()


def test_it_says_that_it_waits_and_can_be_interrupted_there(place, ran):
    assert ran("pictures", "--out", "runs/mine", "--prepare", *TINY)[0] == 0
    run = RunFolder(place / "runs" / "mine")
    with FileLock(place / "runs" / ".cpu.lock"), command("runs/mine") as process:
        assert process.stdout.readline() == "mine: waiting for another run to release the device\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(150) == 0
    assert run.status()["state"] == "paused" and run.checkpoint_steps() == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["pictures"], "there is no training run in 'pictures'; to create one from the images there, add --out"),
        (["pictures/0.png", "pictures/1.png"], "only one run can be trained at a time"),
        (["nothing", "--out", "runs/mine"], "there is no file or folder 'nothing'"),
        (["pictures/notes.png", "--out", "runs/mine"], "no usable image (notes.png: not a picture"),
        (["pictures", "--out", "pictures"], "'pictures' is neither empty nor a training run"),
        (["pictures", "--out", "runs/mine", "--width", "17"], "must be a multiple of 16, got 17"),
        (["pictures", "--out", "runs/mine", "--steps", "0"], "Steps must be a whole number from 1 to"),
        (["pictures", "--out", "runs/mine", "--lr", "nan"], "Learning rate must be a number from"),
    ],
)
def test_bad_input_is_one_sentence(place, ran, arguments, words):
    code, said, complaint = ran(*arguments)
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    assert words in complaint and not (place / "runs" / "mine").exists()


def test_a_damaged_config_is_told(place, ran):
    assert ran("pictures", "--out", "runs/mine", "--prepare", *TINY)[0] == 0
    (place / "runs" / "mine" / "config.json").write_text("{")
    code, _, complaint = ran("runs/mine")
    assert code != 0 and "config.json" in complaint and "Traceback" not in complaint


def test_the_real_command_names_every_setting_and_says_what_is_wrong(place):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "dp", "train", "--help"], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0 and time.monotonic() - began < 30
    names = {name.replace("_", "-") for name in vars(Settings())} - {"flips"} | {"no-flips", "out", "preset", "prepare"}
    assert names <= set(re.findall(r"--([\w-]+)", done.stdout))
    done = subprocess.run([sys.executable, "-m", "dp", "train", "a", "b"], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "only one run" in done.stderr
