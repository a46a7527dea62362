"""ModelCache: the available checkpoints, loaded on first use and reloaded when their files change."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from dp.checkpoints.catalog import CheckpointInfo, list_checkpoints
from dp.checkpoints.classes import classes_of
from dp.checkpoints.folder import load
from dp.diffusion.policy import DiffusionPolicy
from dp.hub import downloads
from dp.system.validation import quote
from dp.training.run_folder import list_runs


class LoadedModel(NamedTuple):
    """stamp: names, times and sizes of the files. digest: SHA-256 of the weights file. classes: their names."""

    stamp: set[tuple[str, int, int]]
    digest: str
    policy: DiffusionPolicy
    classes: list[str]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.policy.state_dict().values())


class ModelCache:
    """The checkpoints in `roots`, followed by the models downloaded from the Hub and the checkpoints of the training
    runs in `runs` (DP_HOME). All are listed anew for each call, which may come from any thread.

    memory: in bytes; beyond it the least recently used policy is evicted, but never the one just requested.
    """

    def __init__(self, *roots: str | Path, device: torch.device, memory: int, runs: str | Path | None = None):
        self.roots, self.device, self.memory, self.runs = roots, device, memory, runs
        self._models: dict[str, LoadedModel] = {}  # the most recently used last
        self._loading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[CheckpointInfo]:
        """List the available checkpoints. Runs come last, so that a visitor who may not see them never gets a run's
        checkpoint under the name of a model.
        """
        bundled = list_checkpoints(*self.roots)
        if not self.runs:
            return bundled
        return bundled + downloads.list_models(self.runs) + run_checkpoints(self.runs)

    def get(self, checkpoint: str) -> LoadedModel:
        """Return the model of that name. Raises ValueError (CheckpointError) if it is unknown or damaged."""
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
        with loading:  # one load per checkpoint at a time; other checkpoints do not wait
            known = self._models.get(checkpoint)
            if known is None or known.stamp != stamp:
                network, config = load(path)
                policy = DiffusionPolicy(network, **config["policy"]).to(self.device).eval()
                sha256 = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
                known = LoadedModel(stamp, sha256, policy, classes_of(config))
        with self._lock:
            self._models.pop(checkpoint, None)
            self._models[checkpoint] = known
            sizes = {name: model.nbytes for name, model in self._models.items()}
            while len(sizes) > 1 and sum(sizes.values()) > self.memory:
                del sizes[oldest := next(iter(sizes))], self._models[oldest]  # memory is freed when its last run ends
        return known


def run_checkpoints(runs_dir: str | Path) -> list[CheckpointInfo]:
    """Return the checkpoints of all runs, newest run and newest checkpoint first. A run whose name an older run has is
    named by its id.
    """
    runs, named = list_runs(runs_dir), {}
    for run in reversed(runs):
        named[run.id if run.name in named else run.name] = run
    return [
        replace(entry, run=name)
        for name, run in reversed(named.items())
        for entry in reversed(list_checkpoints(run.path / "checkpoints"))
    ]
