"""Tiny training runs, in processes of their own and in this one."""

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dp.data.prepare import prepare
from dp.system.atomic_files import write_json
from dp.training import processes as jobs
from dp.training.run_folder import RunFolder
from dp.training.status import ACTIVE_STATES
from dp.training.trainer import Trainer

NETWORK = dict(
    type="rin", dim=8, image_size=8, patch_size=4, channels=3, depth=1, latent_self_attn_depth=1, dim_latent=8
)
NETWORK |= dict(num_latents=4, heads=2, dim_head=4, conv_widths=[], conv_blocks=1)
TRAINER = dict(train_batch_size=4, train_num_steps=8, save_and_sample_every=4, num_samples=1, sample_steps=1)
TRAINER |= dict(train_lr=3e-3, ema_update_every=2, lr_warmup_steps=3, amp=False)
CONFIG = {"image_size": 8, "network": NETWORK, "policy": {}, "trainer": TRAINER, "processes": 1, "license": None}


def make_pictures(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def make_run(tmp_path: Path, name: str = "My  cats!", processes: int = 1, **trainer) -> RunFolder:
    """A new run of six tiny pictures, in the folder `home`."""
    if not (tmp_path / "pictures").exists():
        make_pictures(tmp_path / "pictures")
    for _ in prepare(tmp_path / "pictures", tmp_path / "prepared", 8):
        pass
    config = CONFIG | {"trainer": TRAINER | trainer, "processes": processes}
    return jobs.create(tmp_path / "home", config, tmp_path / "prepared", name=name)


def undisturbed(run: RunFolder, home: Path) -> Path:
    """The last checkpoint of the same run, trained in this process from beginning to end."""
    trainer = Trainer.from_run(jobs.duplicate(run, home).path)
    assert trainer.train() == "finished"
    return trainer.run.checkpoint(trainer.step)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shorten(run: RunFolder, steps: int) -> None:
    """Let an endless run, which is not going on, end after `steps`. However fast a machine is, a run that is to be
    interrupted is then not over before.
    """
    config = run.config()
    write_json(run.config_file, config | {"trainer": config["trainer"] | {"train_num_steps": steps}})


def until(condition, seconds: float = 150, every: float = 0.01) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every)


def state(run: RunFolder) -> str:
    return run.status().state


def ended(run: RunFolder, seconds: float = 150) -> str:
    """How the run ends, once it has and its process is gone."""
    until(lambda: state(run) not in ACTIVE_STATES and not run.is_alive(), seconds)
    return state(run)


def is_gone(pid: int) -> bool:
    """Neither alive nor a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def kill(run: RunFolder) -> None:
    os.kill(run.status().pid, signal.SIGKILL)
    until(lambda: not run.is_alive())


@contextmanager
def no_process_left_behind(home: Path):
    """Ends what still lives of the runs in `home`."""
    try:
        yield
    finally:
        for lock in home.glob("*/lock"):
            run = RunFolder(lock.parent)
            if run.is_alive() and (pid := run.status().pid):
                os.kill(pid, signal.SIGKILL)
                until(lambda run=run: not run.is_alive())
