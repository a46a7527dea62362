"""Write the status and metrics of a training run into its run folder, and read the commands requested there.

Only the main process reads and writes. Commands, a full disk and a missing run folder are broadcast, so that all
processes leave at the same step. The loss is recorded as a mean over the steps since the last record, in total, by
noise level and by class.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils import get_total_norm

from dp.system.atomic_files import is_disk_full
from dp.training.run_folder import COMMANDS, DISK_FULL, RunFolder, RunFolderMissing

NOISE_LEVELS = ("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")  # intervals of t
HEARTBEAT_S = 1.0
AVERAGING_S = 60.0  # of the speed in the status: the time left would swing with that of a single record
MAX_RECORDED_CLASSES = 100  # of more classes the loss is not recorded class by class


class RunReporter:
    """Reports on a run of `total` steps, each over `images` images with these classes."""

    def __init__(self, run: RunFolder, accelerator: Accelerator, images: int, total: int, classes: Sequence[str] = ()):
        self.run, self.accelerator, self.images, self.total = run, accelerator, images, total
        self.classes = classes if len(classes) <= MAX_RECORDED_CLASSES else ()
        self.is_main = accelerator.is_main_process
        self.last_heartbeat = -math.inf
        self.earlier = (0.0, 0.0)  # images and seconds of earlier records, less of those that are longer ago
        self.start_record()

    @contextmanager
    def writing(self) -> Iterator[list[str]]:
        """Within the block the main process writes, and its time does not count toward the speed.

        The strings that the main process appends to the yielded list are broadcast. So is a full disk or a missing run
        folder: every process then raises OSError or RunFolderMissing.
        """
        start, full, missing, strings = time.monotonic(), "", "", []
        try:
            self.run.check_exists()
            yield strings
        except (OSError, SafetensorError) as error:
            full = DISK_FULL if is_disk_full(error) else ""
            missing = "" if full else self.run.missing_reason()
            if not full and not missing:
                raise
        if self.accelerator.num_processes > 1:
            [[full, missing, strings[:]]] = broadcast_object_list([[full, missing, list(strings)]])
        if full:
            raise OSError(errno.ENOSPC, full)
        if missing:
            raise RunFolderMissing(missing)
        self.record_start += time.monotonic() - start

    def open(self, step: int, warning: str) -> None:
        """Report that the run is training from `step` on. warning: an earlier problem to report with it, or ''."""
        self.accelerator.init_trackers(self.run.id)
        with self.writing():
            if self.is_main:
                now = time.time()
                fields = {"state": "running", "pid": os.getpid(), "started": now, "heartbeat": now, "error": None}
                fields |= {"device": str(self.accelerator.device), "processes": self.accelerator.num_processes}
                self.run.update_status(**fields, step=step, total=self.total, loss=None, message=warning)
                if warning or self.run.metrics_file.exists():  # records of later steps are no longer valid
                    text = f"resumed from step {step}{warning and ': '}{warning}"
                    self.run.append_metrics({"step": step, "event": text})
        self.start_record()

    def close(self, state: str, step: int) -> None:
        """Report how the run ended: 'finished', 'paused' or 'stopped'."""
        with self.writing():
            if self.is_main:
                message = f"{state} at step {step:,} of {self.total:,}"
                self.run.update_status(state=state, step=step, total=self.total, message=message, error=None)

    def event(self, step: int, text: str) -> None:
        """Report an event that takes the run back to `step`, and start a new record."""
        with self.writing():
            if self.is_main:
                self.run.append_metrics({"step": step, "event": text})
                self.run.update_status(step=step, loss=None, message=text)
        self.start_record()

    def requested_commands(self, step: int) -> set[str]:
        """Return the pending commands, the same in every process."""
        with self.writing() as commands:
            if self.is_main:
                self.heartbeat(step)
                commands += [command for command in COMMANDS if self.run.is_requested(command)]
        return set(commands)

    def clear_requests(self, commands: Iterable[str]) -> None:
        for command in commands if self.is_main else ():
            self.run.clear_request(command)

    def heartbeat(self, step: int) -> None:
        """Write step, loss and speed to the status, at most every HEARTBEAT_S, if this process holds the run's lock."""
        if time.monotonic() - self.last_heartbeat > HEARTBEAT_S and self.run.lock.is_locked:
            self.last_heartbeat = time.monotonic()
            fields: dict[str, Any] = {"step": step, "heartbeat": time.time()}
            if self.losses and math.isfinite(loss := self.losses[-1].item()):
                fields |= {"loss": loss, "images_per_s": self.mean_images_per_s()}
            self.run.update_status(**fields)

    # ------------------------------------------------------------------------
    # The loss since the last record

    def start_record(self) -> None:
        self.losses: list[Tensor] = []  # of this process, one per step
        # Sums and counts of images by noise level, then by class.
        self.by_group = torch.zeros(2, len(NOISE_LEVELS) + len(self.classes), device=self.accelerator.device)
        self.record_start = time.monotonic()

    def add(self, t: Tensor, condition: Tensor | None, losses: Tensor) -> None:
        """Add the losses [B] of images at the times t [B], with the labels `condition` [B]."""
        level = (t * len(NOISE_LEVELS)).long().clamp(max=len(NOISE_LEVELS) - 1).to(losses.device)
        both = torch.stack([losses, torch.ones_like(losses)])
        self.by_group.index_add_(1, level, both)
        if self.classes and condition is not None:
            has_class = (condition > 0).to(losses.device)
            group = len(NOISE_LEVELS) - 1 + condition.to(losses.device)
            self.by_group.index_add_(1, group[has_class], both[:, has_class])

    def is_finite(self, weights: Iterable[Tensor]) -> bool:
        """Return whether the losses since the last record and the current weights are finite, in every process."""
        total = torch.stack([*self.losses, get_total_norm(weights)]).sum()
        return math.isfinite(self.accelerator.reduce(total, "sum").item())

    def images_per_s(self) -> float:
        images, seconds = self._current()
        return round(images / seconds, 2)

    def mean_images_per_s(self) -> float:
        """Return the speed averaged over about AVERAGING_S."""
        images, seconds = map(sum, zip(self.earlier, self._current()))
        return round(images / seconds, 2)

    def _current(self) -> tuple[int, float]:
        """Return the images and seconds since the last record."""
        return len(self.losses) * self.images, max(time.monotonic() - self.record_start, 1e-9)

    def record(self, step: int, lr: float) -> None:
        """Write one record to metrics.jsonl and to the trackers, and start a new one."""
        mean = torch.stack(self.losses).mean()[None] / self.accelerator.num_processes
        loss, *groups = self.accelerator.reduce(torch.cat([mean, self.by_group.flatten()]), "sum").tolist()
        sums, counts = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        means = [total / count if count else None for total, count in zip(sums, counts)]
        levels, classes = means[: len(NOISE_LEVELS)], means[len(NOISE_LEVELS) :]
        buckets = {name: mean for name, mean in zip(NOISE_LEVELS, levels) if mean is not None}
        by_class = {name: mean for name, mean in zip(self.classes, classes) if mean is not None}
        fields = {"loss": loss, "lr": lr, "images_per_s": self.images_per_s()}
        images, seconds = self._current()
        decay = math.exp(-seconds / AVERAGING_S)
        self.earlier = self.earlier[0] * decay + images, self.earlier[1] * decay + seconds
        with self.writing():
            if self.is_main:
                groups = {"buckets": buckets} | ({"classes": by_class} if by_class else {})
                self.run.append_metrics({"step": step, **fields, **groups})
            logged = {f"loss/t {name}": value for name, value in buckets.items()}
            logged |= {f"loss/{name}": value for name, value in by_class.items()}
            self.accelerator.log(fields | logged, step=step)
        self.start_record()
