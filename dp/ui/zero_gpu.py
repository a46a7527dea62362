"""ZeroGPU: a GPU that is lent for the seconds of one call, and exists only there. What runs inside such a call, for how
long it is asked for, and what a visitor is told who gets none.

The call is a process of its own: what goes in and what comes out is pickled, and the pictures are packed for the page
out here, where no GPU waits for that.
"""

from __future__ import annotations

import html
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import gradio as gr
import spaces
from torch import Tensor

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.serving.frames import Frame
from dp.system.device import best_device, describe
from dp.ui.sampling import page_values
from dp.ui.streaming import FRAMES_PER_S

# Seconds asked for. A call of the bundled network is some 500 kernels: 5 to 10 ms on a GPU, however few the images.
START_S, CALLS_PER_S, ROWS_PER_S = 10, 50, 4000
ANONYMOUS_S = 80  # that the platform lends at once to a visitor who has not signed in
IN_OUR_WORDS = {  # what the platform's own leave open
    "GPU task aborted": "the GPU was released before the run finished: try again, or use fewer images or timesteps",
    "Expired ZeroGPU proxy token": "this page has been open too long to request a GPU: reload it",
}


class Asked(NamedTuple):
    """One run, as `DiffusionPolicy.stream` takes it. keep: steps whose frames come in any case."""

    checkpoint: str
    settings: SampleSettings
    start: Tensor | None = None
    mask: Tensor | None = None
    keep: frozenset[int] = frozenset()


class NotLent(gr.Error):
    """There was no GPU, or the run on it failed. sentence: the reason as plain text; Gradio's message is markup."""

    def __init__(self, sentence: str):
        super().__init__(html.escape(sentence, quote=False), print_exception=False)
        self.sentence = sentence


News = tuple[int, Frame, bool]  # which of the runs, its newest frame, and whether that is its last
Lend = Callable[[Sequence[Asked]], Iterator[News]]


def lender(engine: Engine) -> Lend:
    """A function that runs one run after the other inside one call. It raises NotLent for whatever goes wrong."""
    call = spaces.GPU(duration=seconds_needed)(partial(run_all, engine))

    def lend(runs: Sequence[Asked]) -> Iterator[News]:
        try:
            yield from call(runs)
        except Exception as error:
            raise NotLent(sentence(error)) from error

    return lend


def run_all(engine: Engine, runs: Sequence[Asked]) -> Iterator[News]:
    """Inside the call. As many frames as an eye can follow, on the host, those to keep, and the last of each run. What
    goes wrong is a gr.Error: of any other only its class's name leaves the call.
    """
    try:
        for i, run in enumerate(runs):
            policy, before, shown_at = engine.policy(run.checkpoint).to(best_device()), None, 0.0
            for step in policy.run(policy.init_state(run.settings, run.start, run.mask)):
                is_last = step.index == step.timesteps
                if is_last or step.index in run.keep or time.monotonic() - shown_at >= 1 / FRAMES_PER_S:
                    shown_at = time.monotonic()
                    yield i, Frame.of(step, before), is_last
                before = step
    except Exception as error:
        raise page_values.complaint(describe(error)) from error


def seconds_needed(runs: Sequence[Asked]) -> int:
    """Return the seconds that the runs may take, one after the other. They are requested from the visitor's quota."""
    calls = sum(run.settings.timesteps for run in runs)
    rows = sum(run.settings.timesteps * run.settings.batch_size for run in runs)
    return START_S + calls // CALLS_PER_S + rows // ROWS_PER_S


def waiting_for(runs: Sequence[Asked]) -> str:
    """Return the page's status line until the first frame arrives."""
    seconds = seconds_needed(runs)
    more = f": more than the {ANONYMOUS_S} that visitors get without signing in" if seconds > ANONYMOUS_S else ""
    return f"waiting for a GPU, to be used for at most {seconds} seconds{more}…"


def sentence(error: Exception) -> str:
    """Out of what the call has raised. The platform's errors are markup, some with a link in it."""
    if not isinstance(error, gr.Error):
        traceback.print_exception(error)
        return f"no GPU is available: {describe(error)}"
    words = html.unescape(re.sub(r"<[^<>]*>", "", error.message)).strip()
    return IN_OUR_WORDS.get(words, words)
