"""Create, start, control, rename, duplicate, extend and delete training runs on this machine.

A run trains in a process of its own, and everything goes through its run folder. These functions therefore work from
any process, also after the app was restarted. Loads no torch.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, Timeout

from dp.system import environment, proxies
from dp.system.atomic_files import replacing, write_json
from dp.system.validation import check_encodable, check_integer, check_number, quote
from dp.training.locks import acquire_lock, device_lock_file, is_locked
from dp.training.presets import MAX_STEPS, fast_config
from dp.training.run_folder import LOCK_TIMEOUT_S, MAX_NAME_LENGTH, RunFolder

ROOT = Path(__file__).resolve().parents[2]  # the working directory of `python -m dp train`
DEFAULT_DEVICE = "device"  # the name of the best device, if the environment names none
START_FILES = ("config.json", "model.safetensors")  # of a checkpoint folder
START_TIMEOUT_S = 120  # torchrun loads torch before it starts the process


def create(runs_dir: str | Path, config: dict[str, Any], dataset: str | Path, name: str | None = None) -> RunFolder:
    """Create a run in `runs_dir` from its config and a prepared dataset, which is moved into the run folder."""
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise ValueError(f"there is no dataset in {quote(str(dataset))}")
    return _create(runs_dir, config | {"name": name or config.get("name") or "run"}, dataset, shutil.move)


def duplicate(run: RunFolder, runs_dir: str | Path, **changes: Any) -> RunFolder:
    """Create a run with the same images and `changes` to the config; dictionaries among them are merged. One that makes
    a model fast keeps its start.
    """
    return _duplicate(run, runs_dir, {"name": f"{run.name} again"[:MAX_NAME_LENGTH]} | changes)


def make_fast(run: RunFolder, runs_dir: str | Path, id: str | None = None) -> RunFolder:
    """Create a run that makes the newest model of a finished run fast: it learns to draw in a few calls. id: the name
    of its folder, by default a new one. Raises ValueError if the run or its model does not allow it.
    """
    if (state := run.status().state) != "finished":
        raise ValueError(f"the run {quote(run.name)} is {state}: only the model of a finished run can be made fast")
    if not (steps := run.checkpoint_steps()):
        raise ValueError(f"the run {quote(run.name)} has no checkpoint left to start from")
    start = run.checkpoint(steps[-1])
    changes = {"name": f"{run.name[: MAX_NAME_LENGTH - 5]} fast", "original": f"{run.id}/{start.name}"}
    return _duplicate(run, runs_dir, changes | fast_config(run.config()), start=start, id=id)


def _duplicate(run: RunFolder, runs_dir: str | Path, changes: dict[str, Any], **options: Any) -> RunFolder:
    config = run.config()
    if not config or not run.dataset.is_dir():
        raise ValueError(f"the run {quote(run.id)} cannot be duplicated: it has no config or no dataset")
    for key, value in changes.items():
        are_dicts = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = config[key] | value if are_dicts else value
    if run.start.is_dir() and config.get("policy", {}).get("consistency"):
        options = {"start": run.start} | options
    return _create(runs_dir, config, run.dataset, _copy_folder, **options)


def _create(
    runs_dir: str | Path,
    config: dict[str, Any],
    dataset: Path,
    transfer: Callable[[Path, Path], object],
    start: Path | None = None,
    id: str | None = None,
) -> RunFolder:
    """start: the checkpoint folder that the run starts from, if it makes a model fast."""
    name = _check_name(config["name"])
    config = config | {"name": name, "created": time.time()}
    # The random part keeps ids from being guessed, as they appear in links to the run's images.
    id = id or f"{slug(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}"
    run = RunFolder(Path(runs_dir) / id)
    with replacing(run.path) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", config)
        transfer(dataset, temporary / "dataset")
        if start:
            (temporary / run.start.name).mkdir()
            for file in START_FILES:
                _link(str(start / file), str(temporary / run.start.name / file))
    return run


def _copy_folder(old: Path, new: Path) -> None:
    shutil.copytree(old, new, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # safe, as prepared datasets and checkpoints are never modified
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a run's name must be text, got {quote(name)}")
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"a run's name must have 1 to {MAX_NAME_LENGTH} characters, got {len(name)}")
    check_encodable("a run's name", name)
    return name


# ----------------------------------------------------------------------------
# The process


def start(run: RunFolder) -> None:
    """Start or resume the run in a new process, which does not depend on this one or on a terminal. Returns once it is
    alive. Raises ValueError if the run is already training, or if the process exits immediately.
    """
    if run.is_alive():
        raise ValueError(f"the run {quote(run.name)} is already training")
    check_encodable("the path of a run's folder", str(run.path.resolve()))  # safetensors cannot open others
    previous, deadline = _launch_identity(run), time.monotonic() + START_TIMEOUT_S
    with run.log_file.open("ab") as log:
        process = _launch(run, run.config().get("processes") or 1, stdout=log, stderr=subprocess.STDOUT)
    threading.Thread(target=process.wait, daemon=True).start()  # without it, the process would remain as a zombie
    while time.monotonic() < deadline:
        code = process.poll()  # before the status, as the process may write it and exit between the two
        if _launch_identity(run) != previous:
            return
        if code is None:
            time.sleep(0.05)
        elif run.is_alive():
            raise ValueError(f"the run {quote(run.name)} is already training")
        else:
            raise ValueError(f"the run {quote(run.name)} ended at once: {run.tail(1) or f'exit code {code}'}")
    raise ValueError(f"the run {quote(run.name)} did not start within {START_TIMEOUT_S} seconds; see its log")


def _launch_identity(run: RunFolder) -> tuple[Any, Any]:
    """Return a value that changes with every start of a run, even if the clock is set back."""
    status = run.status()
    return status.started, status.pid


def benchmark(run: RunFolder) -> subprocess.Popen:
    """Start a process that times ten steps and deletes everything it writes. It prints one line of JSON:
    {"seconds_per_step": x, "seconds_per_save": y, "device": "..."}, or {"error": "..."}.
    """
    return _launch(run, 1, "--benchmark", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def is_device_busy(runs_dir: Path) -> bool:
    """Return whether a run in `runs_dir` is training on the device that the environment names. Others wait for it."""
    return is_locked(device_lock_file(runs_dir, environment.device() or DEFAULT_DEVICE))


def _launch(run: RunFolder, processes: int, *arguments: str, **streams: Any) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["dp", "train", str(run.path.resolve()), *arguments]
    if os.name == "nt":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    else:
        detached = {"start_new_session": True}
    # The log is read as UTF-8, whatever the encoding of the app's terminal.
    environment = os.environ | proxies.hidden | {"PYTHONIOENCODING": "utf-8:backslashreplace"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, **detached, **streams)


def pause(run: RunFolder) -> None:
    """Request that the run saves a checkpoint and exits; `start` resumes it."""
    _request(run, "pause")


def save_now(run: RunFolder) -> None:
    """Request a checkpoint."""
    _request(run, "save")


def sample_now(run: RunFolder) -> None:
    """Request sample images."""
    _request(run, "sample")


def _request(run: RunFolder, command: str) -> None:
    if not run.is_alive():
        raise ValueError(f"the run {quote(run.name)} is not training: it is {run.status().state}")
    run.request(command)


def stop(run: RunFolder) -> None:
    """Request that the run saves a checkpoint and ends. A run without a process is marked as stopped."""
    if run.is_alive():
        return run.request("stop")
    state = run.status().state
    if state not in ("paused", "interrupted"):
        raise ValueError(f"the run {quote(run.name)} is not training: it is {state}")
    with _lock_idle(run):
        run.update_status(state="stopped", message="stopped")


# ----------------------------------------------------------------------------
# The folder


def slug(name: str) -> str:
    """Return a run's name in a form that is valid in paths and in repository names on the Hub."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") or "run"


def rename(run: RunFolder, name: str) -> None:
    """Change the name of a run; its folder keeps its path. Raises ValueError if the name is not allowed."""
    write_json(run.config_file, run.config() | {"name": _check_name(name)})


def extend(run: RunFolder, steps: int) -> None:
    """Raise the total of a finished run to `steps` and mark it as paused. Warm-up and learning rate horizon stay as
    they are, so that the completed steps remain valid. Raises ValueError if the run cannot be extended.
    """
    if (state := run.status().state) != "finished":
        raise ValueError(f"the run {quote(run.name)} is {state}: only a finished run can be trained longer")
    with _lock_idle(run):
        if not any(run.path.glob("checkpoints/*/training-state/state.json")):
            raise ValueError(
                f"the run {quote(run.name)} has no training state left to resume from: duplicate it instead"
            )
        config = run.config()
        settings = config.get("trainer", {})
        check_integer("the run's train_num_steps", settings.get("train_num_steps"), 0)
        steps = check_number("Steps", steps, settings["train_num_steps"] + 1, MAX_STEPS)
        # In this order: if killed between the two, the run is paused at its old end, and Resume finishes it at once.
        run.update_status(state="paused", total=steps, message=f"extended to {steps:,} steps")
        write_json(run.config_file, config | {"trainer": settings | {"train_num_steps": steps}})


def delete(run: RunFolder) -> None:
    """Delete the run folder. Raises ValueError while the run is alive."""
    if run.has_active_job():
        raise ValueError(f"the run {quote(run.name)} is training as a Hugging Face job: stop it first")
    with _lock_idle(run):
        pass  # only checked: Windows cannot rename a folder while a file in it is open
    trash = run.path.with_name(f".{run.id}.deleted")  # hidden at once, as deleting may take long
    os.replace(run.path, trash)
    shutil.rmtree(trash)


def _lock_idle(run: RunFolder) -> AcquireReturnProxy:
    """Acquire the lock of a run that is not training, so that no process starts meanwhile."""
    try:
        return acquire_lock(run.lock, LOCK_TIMEOUT_S)
    except Timeout:
        raise ValueError(f"the run {quote(run.name)} is training: stop it first") from None
