"""The runs as they are on disk: a `gr.HTML` component that asks once a second for what is new, as long as it is looked
at. Nothing of it is kept here, so a second page, a reload, a phone and an app that was started anew show the same.

Its value is {"show": the id of the run to show, "rent": whether a machine for it is to be chosen, "file": one to be
taken away}. It triggers `opened`, with a `run`, a `milestone` and a `tab`; `downloaded`, with the first two; and
`duplicated`, with a `run`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import gradio as gr

from dp.system.records import WHOLE, fits, readable
from dp.system.validation import message_of
from dp.training import processes
from dp.training.presets import MAX_STEPS
from dp.training.remote.hardware import words_of
from dp.training.run_folder import ALIVE, METRICS_BYTES, NO_STATUS, RunFolder, home, runs_in
from dp.ui.auth import permission
from dp.ui.components.component import Component
from dp.ui.components.player.player import data_uri

SCRIPTS = ("run_board", "chart", "samples", "form", "longer", "publish", "rent")  # one scope
PICTURES = 12  # in one answer, at most
MAX_SAMPLE = 20_000_000  # bytes of one of them
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
    """tabs: the ids of those in which a milestone can be opened. served: functions that the page may call beside those
    of here. exchange_s: how often the page asks for news of what is trained elsewhere.
    """

    def __init__(self, tabs: list[str], served: Sequence[Callable[..., Any]], exchange_s: float, **kwargs: Any):
        super().__init__(
            html="run_board/run_board.html",
            css=["run_board/run_board.css"],
            js=[f"run_board/{name}.js" for name in SCRIPTS],
            description="the run to show",
            server_functions=[look, act, *served],
            value={},
            tabs=tabs,
            exchange_s=exchange_s,
            max_steps=MAX_STEPS,
            **kwargs,
        )


def look(asked: Any, request: gr.Request) -> dict[str, Any]:
    """What is new since the last time: `runs`, the list, unless `seen` is its mark; and of the run `run` its `facts`,
    unless `known` is theirs, `records` of metrics.jsonl from `offset` on, and pictures of `samples` later than `have`.
    Anybody may call this, and the next one, with anything.
    """
    if why_not := permission.refusal(request):
        return {"problem": why_not}
    asked = asked if isinstance(asked, dict) else {}
    answer = changed("runs", [summary(run) for run in runs_in(home())], asked.get("seen"), "seen")
    try:
        run = run_of(asked.get("run"))
    except ValueError:  # deleted, just now perhaps
        return answer | {"gone": True}
    answer |= changed("facts", facts(run), asked.get("known"), "known")
    offset, have = asked.get("offset"), asked.get("have")
    start = offset if isinstance(offset, int) and 0 <= offset < 2**53 else 0
    records, offset = run.metrics(start)
    later = [step for step in run.sampled() if not isinstance(have, int) or step > have]
    samples = [[step, image] for step in later[:PICTURES] if (image := sample(run, step))]
    more = len(later) > PICTURES or offset - start > METRICS_BYTES // 2
    return answer | {"records": records, "offset": offset, "samples": samples, "more": more}


def act(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Do the `verb` with the run `run`; 'rename' takes a `name`, 'extend' the `steps` in all."""
    if why_not := permission.refusal(request):
        return {"problem": why_not}
    try:
        run, verb = run_of(asked["run"]), asked["verb"]
        if verb == "rename":
            processes.rename(run, asked["name"])
        elif verb == "extend":
            processes.extend(run, asked["steps"])
            processes.start(run)
        else:
            VERBS[verb](run)
    except (KeyError, TypeError):
        return {"problem": "malformed request"}
    except (ValueError, OSError) as error:
        return {"problem": readable(message_of(error))}
    return {}


def run_of(name: Any) -> RunFolder:
    """The run of an id. Raises ValueError where there is none."""
    for run in runs_in(home()):
        if run.id == name:
            return run
    raise ValueError("this run no longer exists")


def changed(key: str, value: Any, mark: Any, of_mark: str) -> dict[str, Any]:
    """Nothing where `mark` is already that of `value`."""
    found = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
    return {} if found == mark else {key: value, of_mark: found}


def summary(run: RunFolder) -> dict[str, Any]:
    """A run's line in the list."""
    status = status_of(run)
    line = {"id": run.id, "name": run.name, "state": status["state"], "away": run.is_away()}
    return line | {key: status.get(key) or 0 for key in ("step", "total")}


def status_of(run: RunFolder) -> dict[str, Any]:
    """The run's status; where its folder is so broken that it has none, a failed one that says why."""
    try:
        return run.status()
    except OSError as error:
        return NO_STATUS | {"state": "failed", "message": readable(f"the run folder cannot be read: {error}")}


def sample(run: RunFolder, step: int) -> str | None:
    """The sample images of a step as a data URI; None where the file cannot be sent."""
    with suppress(OSError):
        if run.sample(step).stat().st_size <= MAX_SAMPLE:
            return data_uri("png", run.sample(step).read_bytes())
    return None


def facts(run: RunFolder) -> dict[str, Any]:
    """Return the facts of a run that the page shows beside its charts and images."""
    status = status_of(run)
    state = status["state"]
    said = {key: status.get(key) for key in ("step", "total", "loss", "images_per_s", "message", "error")}
    said |= {"id": run.id, "name": run.name, "state": state}
    said |= {"checkpoints": run.milestones(), "answers": status.get("is_responding", True) or state not in ALIVE}
    said |= {"log": run.tail(LOG_LINES)} if state in ("failed", "lost") else {}
    said |= rented(status)
    try:
        config = run.config()
    except ValueError as error:
        return said | {"left": None, "made": readable(message_of(error))}
    dataset, network = config.get("dataset", {}), config.get("network", {})
    side = config.get("image_size") or "?"
    made = f"{dataset.get('count', '?')} images · {dataset.get('name', '?')} · {side} × {side}"
    made += f" · width {network.get('dim', '?')}, depth {network.get('depth', '?')}"
    return said | {"left": seconds_left(config, status), "made": made}


def rented(status: dict[str, Any]) -> dict[str, Any]:
    """Of a run that goes on as a Job, `job`: where, since when, for how long; of one that did so last, `was_job`; and
    `repo`, what a Job that is over has left.
    """
    remote = status["remote"]
    if not remote:
        return {}
    if not remote["is_going_on"]:
        return {"repo": remote["repo"], "was_job": status["pid"] is None}
    limit = words_of(remote["timeout"])
    return {"job": {"flavor": remote["flavor"], "url": remote["url"], "since": status["started"], "limit": limit}}


def seconds_left(config: dict[str, Any], status: dict[str, Any]) -> float | None:
    """By the speed of late; None where it is not under way or nothing has been measured."""
    rate, step, total = (status.get(key) for key in ("images_per_s", "step", "total"))
    if status["state"] != "running" or not rate or not total:
        return None
    trainer = config.get("trainer", {})
    factors = trainer.get("train_batch_size", 16), trainer.get("gradient_accumulate_every", 1)
    if not all(factor and fits(factor, WHOLE) for factor in factors):
        return None
    return round(max(total - (step or 0), 0) * math.prod(factors) / rate)


def free_name(name: str) -> str:
    """`name`, or where a run has it already, that and a number."""
    taken = {run.name for run in runs_in(home())}
    return next(free for number in count(1) if (free := f"{name} {number}" if number > 1 else name) not in taken)
