"""Training processes without the seconds that importing torch takes: forked from a server that has imported it. They
are real processes, which end by signals and hold locks; only their start is not that of `python -m`.
"""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import runpy
import shlex
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from dp.training import processes as jobs

FORKS = multiprocessing.get_context("forkserver") if os.name != "nt" else None
LAUNCH = jobs._launch
PRELOADED = [
    "forks",
    "dp.training.trainer",
    "dp.training.cli",
    "dp.training.remote.worker",
    "torch._dynamo",
    "torch.distributed.run",
    "accelerate.tracking",
]


ENDLESS, PAUSE_S = 100_000, 0.01


class Fork:
    """As much of subprocess.Popen as dp and these tests use. stdout: a file, which takes stderr, too, or PIPE."""

    def __init__(self, target, *arguments, stdout, environment, cwd):
        self.stdout, out = None, None
        if stdout == subprocess.PIPE:
            reading, out = os.pipe()
            self.stdout = open(reading, encoding="utf-8")  # noqa: SIM115 (closed by `communicate`)
        FORKS.set_forkserver_preload(PRELOADED)
        descriptor = os.dup(stdout.fileno()) if out is None else out
        with multiprocessing.connection.Connection(descriptor, readable=False) as stream:
            details = (stream, out is None, dict(environment), str(cwd), target, *arguments)
            # A run left behind must not keep the tests from ending; a Job starts processes of its own.
            self.process = FORKS.Process(target=_begin, args=details, daemon=target is train)
            self.process.start()
        self.pid, self.lock = self.process.pid, threading.Lock()

    def poll(self) -> int | None:
        with self.lock:  # the exit code can be read only once
            return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        if not multiprocessing.connection.wait([self.process.sentinel], timeout):
            raise subprocess.TimeoutExpired("fork", timeout)
        return self.poll()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.wait()

    def kill(self) -> None:
        if self.poll() is None:
            self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        with self.stdout:
            said = self.stdout.read()
        self.wait(timeout)
        return said, None


def _begin(stream, takes_errors, environment, cwd, target, *arguments) -> None:
    import torch

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, source in enumerate((nothing, stream.fileno(), stream.fileno() if takes_errors else nothing)):
        os.dup2(source, number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    stream.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    target(*arguments)


def train(*arguments: str) -> None:
    """Do what `python -m dp train` does. A run without an end in sight pauses in each step, since its test only waits
    for it while others need the processor.
    """
    from dp.training import worker
    from dp.training.trainer import Trainer

    importlib.reload(worker)  # it reads its rank when it is loaded

    def train_step_slowly(trainer, train_step=Trainer.train_step):
        if trainer.train_num_steps >= ENDLESS:
            time.sleep(PAUSE_S)
        return train_step(trainer)

    Trainer.train_step = train_step_slowly
    sys.argv = ["dp", "train", *arguments]
    runpy.run_module("dp", run_name="__main__", alter_sys=True)


def launch(run, processes, *arguments, stdout, **_) -> Fork:
    """Take the place of `dp.training.processes._launch` for a run of one process."""
    streams = {"stdout": stdout, "environment": os.environ, "cwd": jobs.ROOT}
    return Fork(train, str(run.path.resolve()), *arguments, **streams)


def torchrun(*arguments: str) -> None:
    """Do what `python -m torch.distributed.run` does, which starts other processes: fork these, too."""
    from torch.distributed import run as launcher
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    global FORKS

    def fork(handler, command, environment):
        assert command[1:5] == ("-u", "-m", "dp", "train")
        return Fork(train, *command[5:], stdout=sys.stdout, environment=environment, cwd=os.getcwd())

    FORKS, SubprocessHandler._popen = multiprocessing.get_context("fork"), fork
    launcher.main(arguments)


def _launch_several(run, processes, *arguments, **streams) -> Fork:
    """Give to `torchrun` what `dp.training.processes._launch` would give to Python."""

    def fork(command, *, env, cwd, stdout, **_):
        assert command[1:3] == ["-m", "torch.distributed.run"]
        return Fork(torchrun, *command[3:], stdout=stdout, environment=env, cwd=cwd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "subprocess", SimpleNamespace(Popen=fork, DEVNULL=subprocess.DEVNULL))
        return LAUNCH(run, processes, *arguments, **streams)


def _launch_either(run, processes, *arguments, **streams):
    return (_launch_several if processes > 1 else launch)(run, processes, *arguments, **streams)


@contextmanager
def forking(is_wanted: bool = True):
    """Fork the training processes that this process starts; `forking(False)`, inside such a block, starts Python."""
    with pytest.MonkeyPatch.context() as patch:
        if FORKS:
            patch.setattr(jobs, "_launch", _launch_either if is_wanted else LAUNCH)
        yield


def job(command: str, endpoint: str) -> None:
    """Do what a job does once its machine has installed everything: fetch the run and train it."""
    import huggingface_hub
    from huggingface_hub import constants

    from dp.training.remote import worker as aboard

    os.makedirs("machine/run/code")
    os.chdir("machine")
    # What is run is the code that is loaded.
    fetched = partial(huggingface_hub.snapshot_download, ignore_patterns=["code/*"])
    huggingface_hub.snapshot_download = fetched
    constants.ENDPOINT, constants.HF_HUB_DISABLE_XET = endpoint, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(Path("cache").resolve())

    def goes_on(program, arguments):
        jobs.ROOT, sys.argv = Path.cwd(), arguments[2:]
        aboard.main()

    os.execv, jobs._launch = goes_on, launch
    os.environ["DP_BEGAN"] = str(time.time())
    sys.argv = ["-c", *shlex.split(command)[-4:]]
    exec(aboard.FETCH, {})
