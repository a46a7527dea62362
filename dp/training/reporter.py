"""Write a training run's status and metrics into its run folder, and read its commands there.

Only the main process reads and writes; what it is asked, and that its disk is full, is made known to all, so that all
leave at the same step. The loss is recorded as a mean over the steps since the last record, and by how noisy the
pictures were.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils import get_total_norm

from dp.system.atomic_files import is_disk_full
from dp.training.run_folder import DISK_FULL, VERBS, Gone, RunFolder

LEVELS = ("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")  # of t
SIGN_OF_LIFE_S = 1.0


class Journal:
    """Of a run of `total` steps, each over `images` pictures."""

    def __init__(self, run: RunFolder, accelerator: Accelerator, images: int, total: int):
        self.run, self.accelerator, self.images, self.total = run, accelerator, images, total
        self.is_main = accelerator.is_main_process
        self.said = -math.inf
        self.begin_record()

    @contextmanager
    def writing(self) -> Iterator[list[str]]:
        """The main process writes in this block, in time that counts for no speed. What it puts into the list is made
        known to all; so is a full disk, or a folder that is gone: an OSError in every process.
        """
        before, full, gone, words = time.monotonic(), "", "", []
        try:
            self.run.check_there()
            yield words
        except (OSError, SafetensorError) as error:
            full = DISK_FULL if is_disk_full(error) else ""
            gone = "" if full else self.run.why_gone()
            if not full and not gone:
                raise
        if self.accelerator.num_processes > 1:
            [[full, gone, words[:]]] = broadcast_object_list([[full, gone, list(words)]])
        if full:
            raise OSError(errno.ENOSPC, full)
        if gone:
            raise Gone(gone)
        self.since += time.monotonic() - before

    def open(self, step: int, note: str) -> None:
        """The run goes on from `step`. note: what there is to say on that."""
        self.accelerator.init_trackers(self.run.id)
        with self.writing():
            if self.is_main:
                now = time.time()
                facts = {"state": "running", "pid": os.getpid(), "started": now, "heartbeat": now, "error": None}
                facts |= {"device": str(self.accelerator.device), "processes": self.accelerator.num_processes}
                self.run.report(**facts, step=step, total=self.total, loss=None, message=note)
                if note or self.run.metrics_file.exists():  # this run was here before, and may have come further
                    self.run.log({"step": step, "event": f"goes on from step {step}{note and ': '}{note}"})
        self.begin_record()

    def close(self, state: str, step: int) -> None:
        with self.writing():
            if self.is_main:
                message = f"{state} at step {step:,} of {self.total:,}"
                self.run.report(state=state, step=step, total=self.total, message=message, error=None)

    def event(self, step: int, text: str) -> None:
        """Something that throws the run back to `step`; a new record begins."""
        with self.writing():
            if self.is_main:
                self.run.log({"step": step, "event": text})
                self.run.report(step=step, loss=None, message=text)
        self.begin_record()

    def asked(self, step: int) -> set[str]:
        """Return the pending commands, the same in every process."""
        with self.writing() as verbs:
            if self.is_main:
                self.live(step)
                verbs += [verb for verb in VERBS if self.run.asked(verb)]
        return set(verbs)

    def obeyed(self, verbs: Iterable[str]) -> None:
        for verb in verbs if self.is_main else ():
            self.run.obeyed(verb)

    def live(self, step: int) -> None:
        """The main process gives a sign of life, if it holds the run and has not just given one."""
        if time.monotonic() - self.said > SIGN_OF_LIFE_S and self.run.lock.is_locked:
            self.said = time.monotonic()
            facts: dict[str, Any] = {"step": step, "heartbeat": time.time()}
            if self.losses and math.isfinite(loss := self.losses[-1].item()):
                facts |= {"loss": loss, "images_per_s": self.images_per_s()}
            self.run.report(**facts)

    # ------------------------------------------------------------------------
    # The loss since the last record

    def begin_record(self) -> None:
        self.losses: list[Tensor] = []  # this process's, of each step
        self.by_level = torch.zeros(2, len(LEVELS), device=self.accelerator.device)  # sum and count of the pictures'
        self.since = time.monotonic()

    def add(self, t: Tensor, losses: Tensor) -> None:
        """The losses [B] of pictures at t [B]."""
        level = (t * len(LEVELS)).long().clamp(max=len(LEVELS) - 1).to(losses.device)
        self.by_level.index_add_(1, level, torch.stack([losses, torch.ones_like(losses)]))

    def is_sound(self, weights: Iterable[Tensor]) -> bool:
        """Whether the losses since the last record, and the weights now, are numbers."""
        total = torch.stack([*self.losses, get_total_norm(weights)]).sum()
        return math.isfinite(self.accelerator.reduce(total, "sum").item())

    def images_per_s(self) -> float:
        return round(len(self.losses) * self.images / max(time.monotonic() - self.since, 1e-9), 2)

    def record(self, step: int, lr: float) -> None:
        """One line of metrics, to the trackers, too; a new record begins."""
        mean = torch.stack(self.losses).mean()[None] / self.accelerator.num_processes
        loss, *levels = self.accelerator.reduce(torch.cat([mean, self.by_level.flatten()]), "sum").tolist()
        sums, counts = levels[: len(LEVELS)], levels[len(LEVELS) :]
        buckets = {name: total / count for name, total, count in zip(LEVELS, sums, counts) if count}
        facts = {"loss": loss, "lr": lr, "images_per_s": self.images_per_s()}
        with self.writing():
            if self.is_main:
                self.run.log({"step": step, **facts, "buckets": buckets})
            self.accelerator.log(facts | {f"loss/t {name}": value for name, value in buckets.items()}, step=step)
        self.begin_record()
