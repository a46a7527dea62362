"""Frames: what a viewer sees of a run's steps, and how it gets from the device to the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dp.data.codec import to_uint8_tensor
from dp.diffusion.samplers import sample_axes
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import Step


@dataclass(frozen=True)
class Frame:
    """One step as a viewer sees it: `x_t` and the predicted `x0`. Images are clamped to what can be shown, uint8
    [B,H,W,C]. Sequences are float32 [B,C,L], x0 in [0, 1] and x_t unbounded. `moved` [B]: the RMS change of x0 since
    the frame before, with white at 1; 0 in the first frame. index, timesteps, time and log_snr: as in `Step`.
    """

    index: int
    timesteps: int
    time: float
    log_snr: float
    x_t: np.ndarray
    x0: np.ndarray
    moved: np.ndarray

    @classmethod
    def of(cls, step: Step, before: Step | None) -> Frame:
        """Make the frame of `step` from it and the step before. Waits for the images to come from their device."""
        x_t, x0 = (shown(samples).cpu().numpy() for samples in (step.x_t, step.x0))
        change = (step.x0 - (before or step).x0) / 2
        moved = change.float().square().mean(dim=sample_axes(change)).sqrt().cpu().numpy()
        return cls(step.index, step.timesteps, step.time, step.log_snr, x_t, x0, moved)


def shown(samples: Tensor) -> Tensor:
    """Return images [B,C,H,W], where black is -1 and white is 1, as uint8 [B,H,W,C]; sequences [B,C,L] as float32, with
    -1 to 1 as 0 to 1.
    """
    samples = (samples + 1) / 2
    return samples.float() if samples.ndim == 3 else to_uint8_tensor(samples)


def frame_bytes(samples: Tensor) -> int:
    """Return the size of a frame of samples [B,...] in bytes."""
    return 2 * samples.numel() * (4 if samples.ndim == 3 else 1)


def rms_change(before: Frame | None, x0: np.ndarray) -> np.ndarray:
    """Return `Frame.moved` of images [B,H,W,C], or sequences [B,C,L], that follow the frame `before`."""
    if before is None:
        return np.zeros(len(x0), np.float32)
    change = (x0.astype(np.float32) - before.x0) / (255 if x0.dtype == np.uint8 else 1)
    return np.sqrt(np.square(change).mean(axis=tuple(range(1, x0.ndim))))


class Trajectory:
    """The frames of a run that are kept, oldest first: all of a short run, evenly chosen ones of a long run, and always
    the last.
    """

    def __init__(self, settings: SampleSettings):
        self.settings = settings
        self.log_snr: list[float] = []  # of every step, once the run has been prepared
        self.frames: list[Frame] = []
        self.chosen: frozenset[int] = frozenset()  # the steps to keep

    def choose(self, log_snr: list[float], most: int, keep: Iterable[int] = ()) -> None:
        """Keep every step of a run with these levels, or `most` of them, the first and the last included; and the steps
        in `keep` in any case.
        """
        self.log_snr = log_snr
        self.chosen = frozenset(evenly(len(log_snr), most)) | frozenset(keep)

    @property
    def nbytes(self) -> int:
        return sum(frame.x_t.nbytes + frame.x0.nbytes for frame in self.frames)

    def add(self, frame: Frame, is_last: bool = False) -> None:
        known = self.frames[-1].index if self.frames else 0
        if frame.index > known and (is_last or frame.index in self.chosen):
            self.frames.append(frame)


def evenly(timesteps: int, most: int) -> list[int]:
    """Return the steps 1 to `timesteps`, or `most` of them, evenly spread, with both ends."""
    return np.linspace(1, timesteps, min(timesteps, most)).round().astype(int).tolist()


class HostCopy:
    """The images of a batch of steps on their way to the host. On a GPU the copy runs beside the next network call."""

    def __init__(self, steps: Sequence[Step]):
        """Start the copy, without waiting for it."""
        x0, x_t = torch.cat([step.x0 for step in steps]), torch.cat([step.x_t for step in steps])
        on_cuda = x0.device.type == "cuda"  # elsewhere nothing would say when the copies are complete
        images = shown(x_t), shown(x0), x0.isfinite().flatten(1).all(1)
        self._copies = [tensor.to("cpu", non_blocking=on_cuda) for tensor in images]
        self._arrived = torch.cuda.Event() if on_cuda else None
        if self._arrived:
            self._arrived.record()
        self._sizes = [len(step.x0) for step in steps]

    def wait(self) -> None:
        """Wait for the copy. Raises RuntimeError where a GPU's kernel has failed, which it reports only here."""
        if self._arrived:
            self._arrived.synchronize()

    def parts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return x_t and x0, as in `Frame`, of each step, and whether each image's x0 is finite, [B]."""
        return list(zip(*(tensor.split(self._sizes) for tensor in self._copies)))
