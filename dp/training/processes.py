"""Training runs as jobs: make, start, ask, rename, duplicate, extend, delete. Everything goes through the run folder,
so it works from any process, and after the app was killed and started again. Loads no torch.
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
from pathlib import Path
from typing import Any

from filelock import Timeout

from dp.system import proxies
from dp.system.atomic_files import replacing, write_json
from dp.system.validation import check_encodable, check_integer, quote, within
from dp.training.presets import MAX_STEPS
from dp.training.run_folder import LONGEST_NAME, PROBED_S, RunFolder, acquired

ROOT = Path(__file__).resolve().parents[2]  # `-m dp train` is found from here
STARTS_WITHIN_S = 120  # torchrun loads torch before it starts the process


def create(home: str | Path, config: dict[str, Any], dataset: str | Path, name: str | None = None) -> RunFolder:
    """A new run in `home`, of a request and a prepared dataset, which is moved into it."""
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise ValueError(f"there is no dataset in {quote(str(dataset))}")
    return _make(home, config | {"name": name or config.get("name") or "run"}, dataset, shutil.move)


def duplicate(run: RunFolder, home: str | Path, **changes: Any) -> RunFolder:
    """A new run of the same pictures, with `changes` to its config; an object in them is merged with the one there."""
    config = run.config()
    if not config or not run.dataset.is_dir():
        raise ValueError(f"the run {quote(run.id)} has no config or no dataset to make another one from")
    config |= {"name": f"{run.name} again"[:LONGEST_NAME]}
    for key, value in changes.items():
        both_objects = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = config[key] | value if both_objects else value
    return _make(home, config, run.dataset, lambda source, into: shutil.copytree(source, into, copy_function=_link))


def _make(home: str | Path, config: dict[str, Any], dataset: Path, bring) -> RunFolder:
    name = _checked(config["name"])
    config = config | {"name": name, "created": time.time()}
    # Whoever knows the id may see the pictures: it cannot be guessed.
    run = RunFolder(Path(home) / f"{slug(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}")
    with replacing(run.path) as aside:
        aside.mkdir()
        write_json(aside / "config.json", config)
        bring(dataset, aside / "dataset")
    return run


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # nothing ever writes into a prepared dataset
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a run's name must be text, got {quote(name)}")
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME:
        raise ValueError(f"a run's name has 1 to {LONGEST_NAME} characters, got {len(name)}")
    check_encodable("a run's name", name)
    return name


# ----------------------------------------------------------------------------
# The process


def start(run: RunFolder) -> None:
    """Start the run, or resume it: the process goes on from the last whole checkpoint. Returns when it lives; it needs
    neither this process nor a terminal. ValueError where it is alive already, or ends at once.
    """
    if run.is_alive():
        raise ValueError(f"the run {quote(run.name)} is already going on")
    check_encodable("the path of a run's folder", str(run.path.resolve()))  # safetensors opens no other
    before, deadline = _launch_of(run), time.monotonic() + STARTS_WITHIN_S
    with run.log_file.open("ab") as log:
        process = _launch(run, run.config().get("processes") or 1, stdout=log, stderr=subprocess.STDOUT)
    threading.Thread(target=process.wait, daemon=True).start()  # or its remains would stay until this process ends
    while time.monotonic() < deadline:
        code = process.poll()  # before the status: it may report and end between the two
        if _launch_of(run) != before:
            return
        if code is None:
            time.sleep(0.05)
        elif run.is_alive():
            raise ValueError(f"the run {quote(run.name)} is already going on")
        else:
            raise ValueError(f"the run {quote(run.name)} ended at once: {run.tail(1) or f'exit code {code}'}")
    raise ValueError(f"the run {quote(run.name)} does not come to life; see its log")


def _launch_of(run: RunFolder) -> tuple[Any, Any]:
    """Return what differs from one start of a run to the next, even if the clock is set back."""
    status = run.status()
    return status["started"], status["pid"]


def trial(run: RunFolder) -> subprocess.Popen:
    """A process that runs ten steps, leaves nothing behind and writes one line of JSON: {"seconds_per_step": x,
    "seconds_per_save": y, "device": "..."}, or {"error": "..."}.
    """
    return _launch(run, 1, "--trial", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _launch(run: RunFolder, processes: int, *arguments: str, **streams: Any) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["dp", "train", str(run.path.resolve()), *arguments]
    if os.name == "nt":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    else:
        apart = {"start_new_session": True}
    # The log is read as UTF-8, whatever the terminal of the app knows.
    environment = os.environ | proxies.hidden | {"PYTHONIOENCODING": "utf-8:backslashreplace"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, **apart, **streams)


def pause(run: RunFolder) -> None:
    """Ask the run to save and to free the device; `start` resumes it."""
    _ask(run, "pause")


def save_now(run: RunFolder) -> None:
    _ask(run, "save")


def sample_now(run: RunFolder) -> None:
    _ask(run, "sample")


def _ask(run: RunFolder, verb: str) -> None:
    if not run.is_alive():
        raise ValueError(f"the run {quote(run.name)} is not going on: it is {run.status()['state']}")
    run.ask(verb)


def stop(run: RunFolder) -> None:
    """Save and end. A run that no process holds is marked as stopped."""
    if run.is_alive():
        return run.ask("stop")
    state = run.status()["state"]
    if state not in ("paused", "lost"):
        raise ValueError(f"the run {quote(run.name)} is not going on: it is {state}")
    with _idle(run):
        run.report(state="stopped", message="stopped")


# ----------------------------------------------------------------------------
# The folder


def slug(name: str) -> str:
    """A run's name as a part of a path, or of a name on the Hub."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") or "run"


def rename(run: RunFolder, name: str) -> None:
    write_json(run.config_file, run.config() | {"name": _checked(name)})


def extend(run: RunFolder, steps: int) -> None:
    """Make a finished run one of `steps` steps that is paused. Warm-up and horizon keep their numbers: the steps done
    stay what they were. Raises ValueError where that cannot be.
    """
    if (state := run.status()["state"]) != "finished":
        raise ValueError(f"the run {quote(run.name)} is {state}: only a finished run can be trained longer")
    with _idle(run):
        if not any(run.path.glob("checkpoints/*/training-state/state.json")):
            raise ValueError(
                f"the run {quote(run.name)} has no training state left to resume from: duplicate it instead"
            )
        config = run.config()
        settings = config.get("trainer", {})
        check_integer("the run's train_num_steps", settings.get("train_num_steps"), 0)
        steps = within("Steps", steps, settings["train_num_steps"] + 1, MAX_STEPS)
        # In this order: killed between the two, the run is paused at its old end, and Resume finishes it at once.
        run.report(state="paused", total=steps, message=f"extended to {steps:,} steps")
        write_json(run.config_file, config | {"trainer": settings | {"train_num_steps": steps}})


def delete(run: RunFolder) -> None:
    """The run and all that it has made. ValueError while it is alive."""
    if run.is_away():
        raise ValueError(f"the run {quote(run.name)} is going on as a Job: stop it first")
    with _idle(run):
        pass  # on Windows a folder cannot be renamed while a file in it is open
    gone = run.path.with_name(f".{run.id}.deleted")  # out of sight at once, however long it takes
    os.replace(run.path, gone)
    shutil.rmtree(gone)


def _idle(run: RunFolder):
    """Hold the run's lock, so that no process begins meanwhile."""
    try:
        return acquired(run.lock, PROBED_S)
    except Timeout:
        raise ValueError(f"the run {quote(run.name)} is going on: stop it first") from None
