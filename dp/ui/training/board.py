"""The runs as they are on disk: a `gr.HTML` component that asks once a second for what is new, as long as it is looked
at. Nothing of it is kept here, so a second page, a reload, a phone and an app that was started anew show the same.

Its value is {"show": the id of the run to show, "rent": whether a machine for it is to be chosen, "file": one to be
taken away}. It triggers `opened`, with a `run`, a `milestone` and a `tab`; `downloaded`, with the first two; and
`duplicated`, with a `run`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from dp import jobs
from dp.machines import words_of
from dp.runs import ALIVE, RunFolder, home, runs_in
from dp.ui import permission
from dp.ui.player import data_uri

HERE = Path(__file__).parent
SCRIPTS = ("board.js", "chart.js", "samples.js", "form.js", "publish.js", "rent.js")  # one scope
PICTURES = 12  # in one answer, at most
LOG_LINES = 20
VERBS: dict[str, Callable[[RunFolder], Any]] = {
    "pause": jobs.pause,
    "stop": jobs.stop,
    "resume": jobs.start,
    "save": jobs.save_now,
    "sample": jobs.sample_now,
    "delete": jobs.delete,
}


class Board(gr.HTML):
    """tabs: the ids of those in which a milestone can be opened. served: functions that the page may call beside those
    of here. exchange_s: how often the page asks for news of what is trained elsewhere.
    """

    def __init__(self, tabs: list[str], served: Sequence[Callable[..., Any]], exchange_s: float, **kwargs: Any):
        super().__init__(
            server_functions=[look, act, *served],
            value={},
            tabs=tabs,
            exchange_s=exchange_s,
            html_template=(HERE / "board.html").read_text(encoding="utf-8"),
            css_template=(HERE / "board.css").read_text(encoding="utf-8"),
            js_on_load="\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
            apply_default_css=False,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": "the run to show"}


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
        answer |= changed("facts", facts(run), asked.get("known"), "known")
    except (ValueError, OSError):  # deleted, just now perhaps
        return answer | {"gone": True}
    offset, have = asked.get("offset"), asked.get("have")
    records, offset = run.metrics(offset if isinstance(offset, int) and offset >= 0 else 0)
    pictures = [path for path in sorted(run.samples.glob("*.png")) if path.stem.isdigit()]
    later = [path for path in pictures if not isinstance(have, int) or int(path.stem) > have]
    samples = [[int(path.stem), data_uri("png", path.read_bytes())] for path in later[:PICTURES]]
    return answer | {"records": records, "offset": offset, "samples": samples, "more": len(later) > PICTURES}


def act(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Do the `verb` with the run `run`; 'rename' takes a `name`."""
    if why_not := permission.refusal(request):
        return {"problem": why_not}
    try:
        run, verb = run_of(asked["run"]), asked["verb"]
        if verb == "rename":
            jobs.rename(run, asked["name"])
        else:
            VERBS[verb](run)
    except (KeyError, TypeError):
        return {"problem": "this is not what the page sends"}
    except (ValueError, OSError) as error:
        return {"problem": str(error)}
    return {}


def run_of(name: Any) -> RunFolder:
    """The run of an id. Raises ValueError where there is none."""
    for run in runs_in(home()):
        if run.id == name:
            return run
    raise ValueError("there is no such run any more")


def changed(key: str, value: Any, mark: Any, of_mark: str) -> dict[str, Any]:
    """Nothing where `mark` is already that of `value`."""
    found = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
    return {} if found == mark else {key: value, of_mark: found}


def summary(run: RunFolder) -> dict[str, Any]:
    """A run's line in the list."""
    status = run.status()
    line = {"id": run.id, "name": run.name, "state": status["state"], "away": run.is_away()}
    return line | {key: status.get(key) or 0 for key in ("step", "total")}


def facts(run: RunFolder) -> dict[str, Any]:
    """All that the page shows of a run beside its charts and pictures."""
    status = run.status()
    state = status["state"]
    said = {key: status.get(key) for key in ("step", "total", "loss", "images_per_s", "message", "error")}
    said |= {"id": run.id, "name": run.name, "state": state, "left": seconds_left(run, status)}
    said |= {"checkpoints": run.milestones(), "answers": status.get("is_responding", True) or state not in ALIVE}
    said |= {"log": run.tail(LOG_LINES)} if state in ("failed", "lost") else {}
    said |= rented(status)
    try:
        config = run.config()
        dataset, network = config.get("dataset", {}), config.get("network", {})
        said["made"] = f"{dataset.get('count', '?')} pictures of {dataset.get('name', '?')}"
        said["made"] += f" · {config['image_size']} × {config['image_size']}"
        said["made"] += f" · width {network.get('dim', '?')}, depth {network.get('depth', '?')}"
    except (ValueError, KeyError) as error:
        said["made"] = f"its config.json is damaged ({error})"
    return said


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


def seconds_left(run: RunFolder, status: dict[str, Any]) -> float | None:
    """By the speed of late; None where it is not under way or nothing has been measured."""
    rate, step, total = (status.get(key) for key in ("images_per_s", "step", "total"))
    if status["state"] != "running" or not rate or not total:
        return None
    trainer = run.config().get("trainer", {})
    images = trainer.get("train_batch_size", 16) * trainer.get("gradient_accumulate_every", 1)
    return round((total - (step or 0)) * images / rate)


def free_name(name: str) -> str:
    """`name`, or where a run has it already, that and a number."""
    taken = {run.name for run in runs_in(home())}
    return next(free for number in count(1) if (free := f"{name} {number}" if number > 1 else name) not in taken)
