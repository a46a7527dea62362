"""Backends: other ways to compute a network. `torch` is the reference and always there; `openvino`, an optional extra
(requirements-cpu.txt), computes the RIN of a checkpoint faster on a CPU, and in bfloat16 still faster where the CPU has
instructions for it.

A backend is another network with the contract of `dp.diffusion.policy`. A checkpoint is served with the reference until
its other backend is ready, which a background thread sees to:

- Tracing a network takes seconds and would hold up Python's other threads again and again, so a process of its own,
  with a low priority, converts it to a file. The file is kept, by the hash of the weights, for the next start.
- What was read from a file is compared with the reference before it is used. A damaged file is made again.
- Whatever goes wrong, from a processor that is not supported to a process that is killed, costs one line in the log,
  and that checkpoint stays with the reference.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dp.checkpoints.folder import load
from dp.diffusion.policy import DiffusionPolicy
from dp.networks.rin import RIN
from dp.system.atomic_files import replacing
from dp.system.background import is_exiting, run_in_background
from dp.system.validation import message_of

TORCH, OPENVINO = "torch", "openvino"
BACKENDS = {"f32": OPENVINO, "bf16": f"{OPENVINO}-bf16"}  # by precision
ROOT = Path(__file__).resolve().parents[2]
CACHE = ".backends"  # the folder of the converted networks in DP_HOME
FILE, SUM = "model.xml", "sha256"  # of a converted network, beside model.bin
KEPT = 8  # converted networks in it, of some 20 MB each
TIMEOUT_S = 900  # of a conversion, which takes seconds where they are not
QUIET_S = 3  # without anybody's run, or the app's start, before a part of the work that takes a core
BUSY_S = 15  # the longest wait for that
TOLERANCE = {"f32": 1e-3, "bf16": 0.1}  # of the largest value: ten times and twice what rounding is
CHECKED_ROWS = 3


def load_openvino() -> Any:
    """Import OpenVINO, at first use since that takes time. Raises ImportError where it is not installed.

    It would report each import and each conversion to its makers. It does not where the package for that is missing.
    """
    sys.modules["openvino_telemetry"] = None
    import openvino

    return openvino


# ----------------------------------------------------------------------------
# The network


class Positional(nn.Module):
    """A RIN with the inputs that a conversion needs: all of them, in order, the class only if it has classes."""

    def __init__(self, network: RIN):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor, latents: Tensor, *condition: Tensor):
        return self.network(x, time, x_self_cond, latents, *condition, return_latents=True)


def has_bfloat16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def example_inputs(network: RIN, rows: int) -> list[Tensor]:
    """Return the inputs of `Positional` with random values, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    image = (rows, network.channels, network.image_size, network.image_size)
    x, x0, latents = (
        torch.randn(*shape, generator=generator) for shape in (image, image, (rows, *network.latents.shape))
    )
    inputs = [x, torch.linspace(0, 1, rows), x0.clamp(-1, 1), latents]
    return inputs + ([torch.arange(rows) % (network.num_classes + 1)] if network.num_classes else [])


class OpenVINONetwork(nn.Module):
    """A RIN computed by OpenVINO on the CPU: the contract of `dp.diffusion.policy`, for inference only. It may be
    called from several threads.

    file: what `convert` made of `reference`, which computes every call from the first one on that OpenVINO fails in.
    precision: 'f32', or 'bf16' where `has_bfloat16`. Raises whatever OpenVINO does if it cannot use the file.
    """

    def __init__(self, file: Path, reference: RIN, precision: str = "f32"):
        super().__init__()
        self.reference, self.precision = reference, precision
        self.channels, self.image_size, self.num_classes = (
            reference.channels,
            reference.image_size,
            reference.num_classes,
        )
        core = load_openvino().Core()
        core.set_property({"ENABLE_MMAP": False})  # a file that is cut short meanwhile would end the whole process
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        # One call at a time, on all threads, which share the cores with others and must not be tied to some of them.
        options |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        self._request = core.compile_model(core.read_model(file), "CPU", options).create_infer_request()
        self._lock, self.has_failed = threading.Lock(), False
        self.nbytes = file.with_suffix(".bin").stat().st_size  # of its copy of the weights

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        x_self_cond: Tensor | None = None,
        latents: Tensor | None = None,
        condition: Tensor | None = None,
        return_latents: bool = False,
    ):
        """Return the prediction [B,C,H,W], or with `return_latents` (prediction, latents [B,M,L]). Arguments as in
        `RIN.forward`.
        """
        x_self_cond = torch.zeros_like(x) if x_self_cond is None else x_self_cond
        latents = x.new_zeros(len(x), *self.reference.latents.shape) if latents is None else latents
        inputs = [x, time, x_self_cond, latents]
        if self.num_classes:
            inputs.append(torch.zeros(len(x), dtype=torch.int64) if condition is None else condition)
        outputs = self._outputs(inputs)
        return outputs if return_latents else outputs[0]

    def _outputs(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        if not self.has_failed:
            try:
                return self.infer(inputs)
            except RuntimeError as error:  # also where memory runs out
                self.has_failed = True
                log(f"OpenVINO failed, so PyTorch takes over: {last_line(error)}")
        return self.reference(*inputs, return_latents=True)

    def infer(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the outputs for the inputs of `Positional`. Raises RuntimeError if OpenVINO fails."""
        arrays = [value.detach().contiguous().numpy() for value in inputs]
        with self._lock:  # a request has one set of buffers; the results are copies
            results = self._request.infer(arrays, share_inputs=True)
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])

    @torch.no_grad()
    def check(self) -> None:
        """Raise ValueError unless it computes what the reference does."""
        inputs = example_inputs(self.reference, CHECKED_ROWS)
        for own, expected in zip(self.infer(inputs), self.reference(*inputs, return_latents=True), strict=True):
            far = (own - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
            if not far <= TOLERANCE[self.precision]:  # nor if it is not a number
                raise ValueError(f"its results differ from PyTorch's by {far.item():.2g} of the largest")


# ----------------------------------------------------------------------------
# Conversion


def main() -> None:
    """Convert the network of a checkpoint folder to a file: `python -m dp.serving.backends FOLDER FILE.xml`."""
    folder, file = map(Path, sys.argv[1:])
    write(load(folder)[0].eval(), file)


def write(network: RIN, file: Path) -> None:
    """Convert a network to a file in this process, for any number of rows."""
    openvino, inputs = load_openvino(), example_inputs(network, 2)
    shapes = [[-1, *value.shape[1:]] for value in inputs]
    model = openvino.convert_model(Positional(network).eval(), example_input=tuple(inputs), input=shapes)
    openvino.save_model(model, file, compress_to_fp16=False)


def convert(folder: Path, file: Path) -> None:
    """Convert the network of a checkpoint folder in a process of its own. Raises RuntimeError or TimeoutError with the
    reason if that fails.
    """
    module = ["-W", "ignore", "-m", "dp.serving.backends"]
    command = [sys.executable, *module, str(folder.absolute()), str(file.absolute())]
    code, reason = run_in_background(command, ROOT, TIMEOUT_S)
    if code:
        raise RuntimeError(f"the conversion ended with code {code} {reason}".strip())


def checksum(kept: Path) -> str:
    """Return the SHA-256 of a converted network. OpenVINO would take a damaged one for a file of some other program."""
    parts = [(kept / FILE).with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def prune(cache: Path) -> None:
    """Remove all but the newest entries of the cache, and with them what a killed process left."""
    for path in sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


# ----------------------------------------------------------------------------
# In the background


class Job(NamedTuple):
    """name, folder: of a checkpoint. digest: SHA-256 of its weights. policy: the reference. when_ready: called with a
    policy like it that OpenVINO computes.
    """

    name: str
    policy: DiffusionPolicy
    folder: Path
    digest: str
    when_ready: Callable[[DiffusionPolicy], None]


class Converter:
    """Prepares the other backend of one checkpoint after the other in a thread of its own, which ends when it has none
    left. home: DP_HOME, where the converted networks are kept; without it they are not. is_busy: whether anybody's run
    is being computed. precision: as of `OpenVINONetwork`; float32 where the CPU has no other.
    """

    def __init__(self, home: str | Path | None, is_busy: Callable[[], bool] = lambda: False, precision: str = "f32"):
        self.home, self.is_busy, self.precision = home, is_busy, precision
        self._waiting: list[Job] = []
        self._failed: set[str] = set()  # digests
        self._is_installed = True  # as far as is known
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Prepare the other backend of a policy, if it has one: on a CPU, a RIN does. Return at once."""
        if job.policy.device.type != "cpu" or not isinstance(job.policy.model, RIN):
            return
        with self._lock:
            if self._is_installed and job.digest not in self._failed:
                self._waiting.append(job)
            if self._waiting and self._thread is None:
                # No daemon: a thread inside C++ at Python's exit may abort the process.
                self._thread = threading.Thread(target=self._work, name="dp-backends")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or is_exiting():
                    self._thread = None
                    return
                job = self._waiting.pop(0)
            try:
                job.when_ready(self._prepared(job))
            except Exception as error:
                with self._lock:
                    self._failed.add(job.digest)
                    self._is_installed = getattr(error, "name", None) != OPENVINO  # of an ImportError
                if not self._is_installed and self.precision != "f32":
                    log(f"DP_PRECISION={self.precision} has no effect: install OpenVINO, see requirements-cpu.txt")
                elif self._is_installed and not is_exiting():
                    log(f"OpenVINO cannot compute {job.name}, and PyTorch does: {last_line(error)}")

    def _prepared(self, job: Job) -> DiffusionPolicy:
        self._wait_for_quiet()
        version = load_openvino().__version__.split("-")[0]
        if self.precision == "bf16" and not has_bfloat16():
            log("DP_PRECISION=bf16 has no effect: this CPU has no instructions for bfloat16")
            self.precision = "f32"
        with self._cache() as cache:
            kept = cache / f"{job.digest[:32]}-{version}"
            if kept.exists():
                with suppress(Exception):  # damaged, so it is made again
                    if (kept / SUM).read_text(encoding="ascii") == checksum(kept):
                        return self._compiled(job, kept)
                shutil.rmtree(kept, ignore_errors=True)
            with replacing(kept) as temporary:
                temporary.mkdir()
                convert(job.folder, temporary / FILE)
                (temporary / SUM).write_text(checksum(temporary), encoding="ascii")
            prune(cache)
            self._wait_for_quiet()
            try:
                return self._compiled(job, kept)
            except Exception:
                shutil.rmtree(kept, ignore_errors=True)
                raise

    def _wait_for_quiet(self) -> None:
        since = now = time.monotonic()
        end = now + BUSY_S
        while now < min(since + QUIET_S, end) and not is_exiting():
            time.sleep(0.1)
            now = time.monotonic()
            since = now if self.is_busy() else since

    def _compiled(self, job: Job, kept: Path) -> DiffusionPolicy:
        """Return the policy for a converted network once it is known to compute what the reference does."""
        network = OpenVINONetwork(kept / FILE, job.policy.model, self.precision)
        network.check()
        with suppress(OSError):
            os.utime(kept)  # used just now
        return DiffusionPolicy(network, **job.policy.config).eval()

    @contextmanager
    def _cache(self) -> Iterator[Path]:
        cache = Path(self.home or os.devnull) / CACHE
        with suppress(OSError):  # DP_HOME may be read-only, or /dev/null
            cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            yield cache
        else:
            with tempfile.TemporaryDirectory(prefix="dp-", ignore_cleanup_errors=True) as folder:
                yield Path(folder)


def last_line(error: Exception) -> str:
    """Return the message of an error in one line. OpenVINO's begin with the places in its source, and end with why."""
    lines = [line.strip() for line in message_of(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def log(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
