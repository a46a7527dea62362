"""The board of training runs: a `gr.HTML` component that polls the run folders once a second while it is visible. The
server keeps no state for it, so a second page, a reload, a phone and a restarted app all show the same.

Its value is an instruction: {"show": the id of the run to show, "rent": whether to open its form for renting a machine,
"file": a file to download}. It triggers `opened` with a `run`, a `checkpoint` (its step) and a `tab`, `downloaded` with
a `run` and a `checkpoint`, and `duplicated` with a `run`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from dp.system.environment import runs_dir
from dp.system.records import WHOLE, fits, readable
from dp.system.validation import message_of
from dp.training import processes
from dp.training.presets import MAX_STEPS
from dp.training.remote.hardware import format_duration
from dp.training.run_folder import METRICS_CHUNK_BYTES, RunFolder, list_runs
from dp.training.status import ACTIVE_STATES, RunStatus
from dp.ui.auth import permission
from dp.ui.components.component import Component
from dp.ui.components.data_uri import data_uri
from dp.ui.components.recording import recording_reader

SCRIPTS = [f"shared/{name}.js" for name in ("format", "elements", "server", "canvas", "chart", "playback")]
SCRIPTS += [f"run_board/{name}.js" for name in ("chart", "samples", "form", "extend", "publish", "rent", "job")]
SCRIPTS += ["run_board/run_board.js"]
MAX_SAMPLES = 12  # in one answer
MAX_SAMPLE_BYTES = 20_000_000
LOG_LINES = 20
VERBS: dict[str, Callable[[RunFolder], Any]] = {
    "pause": processes.pause,
    "stop": processes.stop,
    "resume": processes.start,
    "save": processes.save_now,
    "sample": processes.sample_now,
    "delete": processes.delete,
}


class RunBoard(Component):
    """The board of runs. tabs: ids of the tabs in which a checkpoint can be opened. served: further functions that the
    page may call. exchange_s: seconds between two exchanges with the Hub about a run on a rented machine. recording: a
    JSON file with a run that is shown while there are none: its `facts`, `records` and `samples`, as `poll` returns
    them.
    """

    def __init__(
        self,
        tabs: list[str],
        served: Sequence[Callable[..., Any]],
        exchange_s: float,
        recording: Path | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            html="run_board/run_board.html",
            css=["shared/transport.css", "run_board/run_board.css"],
            js=SCRIPTS,
            description="the run to show",
            server_functions=[poll, command, recording_reader(recording), *served],
            has_recording=recording is not None,
            value={},
            tabs=tabs,
            exchange_s=exchange_s,
            max_steps=MAX_STEPS,
            **kwargs,
        )


def poll(data: Any, request: gr.Request) -> dict[str, Any]:
    """Return what is new since an earlier answer: the list of `runs`, unless `runs_mark` is its mark; and about the run
    `run`, its `facts`, unless `facts_mark` is their mark, the `records` of metrics.jsonl from `offset` on, and the
    `samples` after step `last_sample`. Anyone can call this, and `command`, with anything.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    data = data if isinstance(data, dict) else {}
    answer = changed("runs", [summary(run) for run in list_runs(runs_dir())], data.get("runs_mark"))
    try:
        run = run_of(data.get("run"))
    except ValueError:  # deleted, perhaps a moment ago
        return answer | {"is_gone": True}
    answer |= changed("facts", facts(run), data.get("facts_mark"))
    offset, last = data.get("offset"), data.get("last_sample")
    start = offset if isinstance(offset, int) and 0 <= offset < 2**53 else 0
    records, offset = run.metrics(start)
    steps = [step for step in run.sample_steps() if not isinstance(last, int) or step > last]
    samples = [[step, image] for step in steps[:MAX_SAMPLES] if (image := sample(run, step))]
    has_more = len(steps) > MAX_SAMPLES or offset - start > METRICS_CHUNK_BYTES // 2
    return answer | {"records": records, "offset": offset, "samples": samples, "has_more": has_more}


def command(data: Any, request: gr.Request) -> dict[str, Any]:
    """Apply a `verb` to the run `run`. 'rename' takes a `name`, and 'extend' the new total number of `steps`. 'fast'
    returns the id of a new `run`.
    """
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        run, verb = run_of(data["run"]), data["verb"]
        if verb == "rename":
            processes.rename(run, data["name"])
        elif verb == "extend":
            processes.extend(run, data["steps"])
            processes.start(run)
        elif verb == "fast":
            fast = processes.make_fast(run, runs_dir())
            processes.start(fast)
            return {"run": fast.id}
        else:
            VERBS[verb](run)
    except (KeyError, TypeError):
        return {"problem": "malformed request"}
    except (ValueError, OSError) as error:
        return {"problem": readable(message_of(error))}
    return {}


def run_of(run_id: Any) -> RunFolder:
    """Return the run with this id. Raises ValueError if there is none."""
    for run in list_runs(runs_dir()):
        if run.id == run_id:
            return run
    raise ValueError("this run no longer exists")


def changed(key: str, value: Any, mark: Any) -> dict[str, Any]:
    """Return the value and its mark, a hash, unless `mark` is equal to it."""
    new_mark = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
    return {} if new_mark == mark else {key: value, f"{key}_mark": new_mark}


def summary(run: RunFolder) -> dict[str, Any]:
    """Return a run's entry in the list."""
    status = read_status(run)
    entry = {"id": run.id, "name": run.name, "state": status.state, "is_remote": run.has_active_job()}
    return entry | {"step": status.step, "total": status.total or 0}


def read_status(run: RunFolder) -> RunStatus:
    """Return the run's status; if its folder cannot be read, the state is 'failed' and the message says why."""
    try:
        return run.status()
    except OSError as error:
        return RunStatus("failed", message=readable(f"the run folder cannot be read: {error}"))


def sample(run: RunFolder, step: int) -> str | None:
    """Return the samples of a step as a data URI, or None if the file is missing or too large."""
    with suppress(OSError):
        if run.sample(step).stat().st_size <= MAX_SAMPLE_BYTES:
            return data_uri("image/png", run.sample(step).read_bytes())
    return None


def facts(run: RunFolder) -> dict[str, Any]:
    """Return the facts of a run that the page shows beside its charts and images."""
    status = read_status(run)
    state = status.state
    shown = {key: getattr(status, key) for key in ("step", "total", "loss", "images_per_s", "message", "error")}
    # First the requests: of one that has been carried out, the checkpoint exists.
    shown |= {"requested": [command for command in ("save", "sample") if run.is_requested(command)]}
    shown |= {"id": run.id, "name": run.name, "state": state, "checkpoints": run.checkpoint_steps()}
    shown |= {"is_responding": status.is_responding or state not in ACTIVE_STATES}
    shown |= {"log": run.tail(LOG_LINES)} if state in ("failed", "interrupted") else {}
    shown |= job_facts(status)
    try:
        config = run.config()
    except ValueError as error:
        return shown | {"seconds_left": None, "description": readable(message_of(error))}
    dataset, network = config.get("dataset", {}), config.get("network", {})
    side = config.get("image_size") or "?"
    description = f"{dataset.get('count', '?')} images · {dataset.get('name', '?')} · {side} × {side}"
    description += f" · width {network.get('dim', '?')}, depth {network.get('depth', '?')}"
    shown |= {"seconds_left": seconds_left(config, status), "image_size": config.get("image_size")}
    policy = config.get("policy", {})
    shown |= {"can_be_fast": not policy.get("consistency") and policy.get("objective") != "eps"}
    return shown | {"description": description}


def job_facts(status: RunStatus) -> dict[str, Any]:
    """Return the facts about a run's job on a rented machine: `job`, its hardware, page, start and time limit, while it
    is active; afterwards `repo`, the repository that remains of it, and `was_remote`, whether the run has not continued
    on this machine since.
    """
    remote = status.remote
    if not remote:
        return {}
    if not remote.is_active:
        return {"repo": remote.repo, "was_remote": status.pid is None}
    limit = format_duration(remote.timeout)
    return {"job": {"flavor": remote.flavor, "url": remote.url, "since": status.started, "limit": limit}}


def seconds_left(config: dict[str, Any], status: RunStatus) -> float | None:
    """Return the remaining time at the current speed, or None if the run is not training or was not measured yet."""
    if status.state != "running" or not status.images_per_s or not status.total:
        return None
    trainer = config.get("trainer", {})
    factors = trainer.get("train_batch_size", 16), trainer.get("gradient_accumulate_every", 1)
    if not all(factor and fits(factor, WHOLE) for factor in factors):
        return None
    return round(max(status.total - status.step, 0) * math.prod(factors) / status.images_per_s)


def free_name(name: str) -> str:
    """Return `name`, with a number appended if a run already has that name."""
    taken = {run.name for run in list_runs(runs_dir())}
    return next(free for number in count(1) if (free := f"{name} {number}" if number > 1 else name) not in taken)
