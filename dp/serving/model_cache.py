"""ModelCache: the available checkpoints, loaded on first use and reloaded when their files change."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dp.checkpoints.catalog import CheckpointInfo, list_checkpoints
from dp.checkpoints.classes import classes_of
from dp.checkpoints.folder import load
from dp.diffusion.policy import DiffusionPolicy
from dp.hub import downloads
from dp.serving.backends import BACKENDS, TORCH, Converter, Job
from dp.serving.exact_models import Stamp, exact_or_none, files_of, find_exact, load_exact, stamp_of, with_exact
from dp.system.records import name_of
from dp.system.validation import quote
from dp.training.run_folder import list_runs


@dataclass(eq=False)
class LoadedModel:
    """stamp: names, times and sizes of the files. digest: SHA-256 of the weights file, or of an exact model's training
    images. policy: the reference, computed by PyTorch. classes: their names. openvino: the same policy computed by
    OpenVINO, once it is ready.
    """

    stamp: Stamp
    digest: str
    policy: DiffusionPolicy
    classes: list[str]
    openvino: DiffusionPolicy | None = None

    @property
    def nbytes(self) -> int:
        own = sum(tensor.nbytes for tensor in (*self.policy.parameters(), *self.policy.buffers()))
        return own + (self.openvino.model.nbytes if self.openvino else 0)

    @property
    def backend(self) -> str:
        """Return the name of the backend that new runs begin with."""
        if self.openvino and not self.openvino.model.has_failed:
            return BACKENDS[self.openvino.model.precision]
        return TORCH

    def policy_of(self, backend: str) -> DiffusionPolicy:
        """Return the policy for a run of that backend: the reference, which is within rounding of it, while it is not
        here. The model may have been evicted, and loaded again.
        """
        return self.openvino if self.openvino and backend != TORCH else self.policy


class ModelCache:
    """The checkpoints in `roots`, followed by the models downloaded from the Hub and the checkpoints of the training
    runs in `runs` (DP_HOME). All are listed anew for each call, which may come from any thread.

    memory: in bytes; beyond it the least recently used policy is evicted, but never the one just requested. converter:
    what prepares a second backend for each model after it was loaded; None for the reference alone.
    """

    def __init__(
        self,
        *roots: str | Path,
        device: torch.device,
        memory: int,
        runs: str | Path | None = None,
        converter: Converter | None = None,
    ):
        self.roots, self.device, self.memory, self.runs, self.converter = roots, device, memory, runs, converter
        self._models: dict[str, LoadedModel] = {}  # the most recently used last
        self._loading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[CheckpointInfo]:
        """List the available checkpoints. Runs come last, so that a visitor who may not see them never gets a run's
        checkpoint under the name of a model.
        """
        bundled = with_exact(list_checkpoints(*self.roots))
        if not self.runs:
            return bundled
        return bundled + downloads.list_models(self.runs) + run_checkpoints(self.runs)

    def entry(self, checkpoint: str) -> CheckpointInfo:
        """Return the entry of that name. Raises ValueError if there is none."""
        entries = self.entries()
        if found := next((entry for entry in entries if entry.name == checkpoint), None):
            return found
        names = ", ".join(entry.name for entry in entries)
        raise ValueError(f"there is no checkpoint {quote(checkpoint)}; there are: {names or 'none'}")

    def get_exact(self, checkpoint: str) -> LoadedModel:
        """Return the exact model of that checkpoint. Raises ValueError where there is none, with the reason and the
        bundled checkpoints that have one.
        """
        try:
            exact = find_exact(self.entry(checkpoint))
        except ValueError as error:
            others = [name_of(entry.path) for entry in self.entries() if entry.is_exact and not entry.run]
            raise ValueError(f"{error}; choose {' or '.join(others)}" if others else str(error)) from None
        return self.get(exact.name)

    def get(self, checkpoint: str) -> LoadedModel:
        """Return the model of that name. Raises ValueError (CheckpointError) if it is unknown or damaged."""
        entry = self.entry(checkpoint)
        if entry.hub:
            downloads.mark_used(self.runs, entry.hub)
        stamp = stamp_of(files_of(entry) if entry.is_exact else sorted(entry.path.iterdir()))
        with self._lock:
            loading = self._loading.setdefault(checkpoint, threading.Lock())
        with loading:  # one load per checkpoint at a time; other checkpoints do not wait
            known = self._models.get(checkpoint)
            if known is None or known.stamp != stamp:
                known = load_model(entry, stamp, self.device)
                if self.converter:
                    use = partial(setattr, known, "openvino")
                    self.converter.add(Job(entry.name, known.policy, entry.path, known.digest, use))
        with self._lock:
            self._models.pop(checkpoint, None)
            self._models[checkpoint] = known
            sizes = {name: model.nbytes for name, model in self._models.items()}
            while len(sizes) > 1 and sum(sizes.values()) > self.memory:
                del sizes[oldest := next(iter(sizes))], self._models[oldest]  # memory is freed when its last run ends
        return known


def load_model(entry: CheckpointInfo, stamp: Stamp, device: torch.device) -> LoadedModel:
    """Return the model of an entry, ready for sampling. Raises ValueError (CheckpointError) if it is damaged."""
    if entry.is_exact:
        (policy, sha256), config = load_exact(entry), entry.config
    else:
        network, config = load(entry.path)
        policy = DiffusionPolicy(network, **config["policy"])
        sha256 = hashlib.sha256((entry.path / "model.safetensors").read_bytes()).hexdigest()
    return LoadedModel(stamp, sha256, policy.to(device).eval(), classes_of(config))


def run_checkpoints(runs_dir: str | Path) -> list[CheckpointInfo]:
    """Return the checkpoints of all runs, newest run and newest checkpoint first, and after those of each run its exact
    model, if it has one. A run whose name an older run has is named by its id.
    """
    runs, named = list_runs(runs_dir), {}
    for run in reversed(runs):
        named[run.id if run.name in named else run.name] = run
    listed = []
    for name, run in reversed(named.items()):
        own = [replace(entry, run=name) for entry in reversed(list_checkpoints(run.path / "checkpoints"))]
        exact = next(filter(None, map(exact_or_none, own)), None)
        listed += [*own, exact] if exact else own
    return listed
