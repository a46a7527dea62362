"""The checkpoints that can be had, and those that are in memory: loaded on first use and again when their files have
changed, within a budget.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from dp.checkpoints.catalog import CheckpointInfo, list_checkpoints
from dp.checkpoints.folder import load
from dp.diffusion.policy import DiffusionPolicy
from dp.hub import downloads
from dp.system.validation import quote
from dp.training.run_folder import list_runs


class LoadedModel(NamedTuple):
    """stamp: what changes when the files do. digest: SHA-256 of the weights' file."""

    stamp: set[tuple[str, int, int]]
    digest: str
    policy: DiffusionPolicy

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.policy.state_dict().values())


class ModelCache:
    """roots: folders of checkpoint folders, read again each time. runs: a folder of training runs (DP_HOME); the Hub's
    models at hand there and the milestones of its runs come after those. memory: bytes; the policy that has not been
    used for longest leaves first, and the one asked for stays in any case. Any thread may ask.
    """

    def __init__(self, *roots: str | Path, device: torch.device, memory: int, runs: str | Path | None = None):
        self.roots, self.device, self.memory, self.runs = roots, device, memory, runs
        self._models: dict[str, LoadedModel] = {}  # the last one used last
        self._loading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[CheckpointInfo]:
        there = list_checkpoints(*self.roots)
        # In this order: a visitor who may see no runs must not come to a milestone by the name of a model.
        return there + downloads.list_models(self.runs) + milestones(self.runs) if self.runs else there

    def get(self, checkpoint: str) -> LoadedModel:
        """Raises ValueError (CheckpointError) with what is wrong."""
        entry = next((entry for entry in self.entries() if entry.name == checkpoint), None)
        if entry is None:
            names = ", ".join(entry.name for entry in self.entries())
            raise ValueError(f"there is no checkpoint {quote(checkpoint)}; there are: {names or 'none'}")
        if entry.hub:
            downloads.mark_used(self.runs, entry.hub)
        path = entry.path
        stamp = {(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in os.scandir(path)}
        with self._lock:
            loading = self._loading.setdefault(checkpoint, threading.Lock())
        with loading:  # one load of each at a time, and nobody else waits for it
            known = self._models.get(checkpoint)
            if known is None or known.stamp != stamp:
                network, config = load(path)
                policy = DiffusionPolicy(network, **config["policy"]).to(self.device).eval()
                sha256 = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
                known = LoadedModel(stamp, sha256, policy)
        with self._lock:
            self._models.pop(checkpoint, None)
            self._models[checkpoint] = known
            sizes = {name: resident.nbytes for name, resident in self._models.items()}
            while len(sizes) > 1 and sum(sizes.values()) > self.memory:
                del sizes[oldest := next(iter(sizes))], self._models[oldest]  # free when its last run has ended
        return known


def milestones(home: str | Path) -> list[CheckpointInfo]:
    """Those of every run, the newest run and in it the newest milestone first. Where a name is taken by an older run,
    the id stands for it.
    """
    runs, named = list_runs(home), {}
    for run in reversed(runs):
        named[run.id if run.name in named else run.name] = run
    return [
        replace(entry, run=name)
        for name, run in reversed(named.items())
        for entry in reversed(list_checkpoints(run.path / "checkpoints"))
    ]
