"""Trainer: from a folder of pictures to a model. Hugging Face accelerate underneath, so that one process or many run
the same code.

The same run, whatever interrupts it: no random state is kept. What step k trains on, and every random number in it, is
a function of (seed, k): the pictures come in permutations by (seed, epoch), endlessly concatenated, of which step k
takes the next B; t, noise, flips and the self-conditioning coin come from one generator per (seed, step, micro-step),
drawn for the whole global batch, of which each process keeps its slice. So a resumed run is the same run to the bit,
sampling in between disturbs nothing, and two processes do what one does.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from ema_pytorch import EMA
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from dp import checkpoint
from dp.data import ImageDataset
from dp.files import replacing
from dp.images import MODES, encode_png, grid, to_float, to_uint8
from dp.policy import DiffusionPolicy
from dp.runs import RunFolder
from dp.samplers import MAX_SEED, MAX_TIMESTEPS, check_integer

KEEP_TRAINING_STATES = 3  # the weights of every milestone are kept; what resuming needs is three times as large
LOG_EVERY_STEPS = 10


class Batch(NamedTuple):
    """One process's slice of a micro-batch: images [B,C,H,W] in [0, 1], and the randomness that its loss uses."""

    images: Tensor
    t: Tensor
    noise: Tensor
    self_condition: bool


class Trainer:
    """Trains `diffusion_model` on the pictures below `folder`; `train()` goes on from `step` to `train_num_steps`.

    train_batch_size: images per micro-batch, over all processes when `split_batches`, else per process. An optimiser
    step takes `gradient_accumulate_every` of them. lr_warmup_steps, lr_decay_steps: linear warm-up, then a cosine to 0
    at `lr_decay_steps` (None: no decay). weight_decay: on matrices and convolutions only. EMA: every `ema_update_every`
    steps, its decay warming up to `ema_decay` per update. Every `save_and_sample_every` steps and at the end: a
    checkpoint, and a square grid of `num_samples` EMA images in `sample_steps` steps, always from the same seeds. amp,
    mixed_precision_type: 'bf16' or 'fp16' autocast; fp16 needs a GPU. Raises ValueError for a setting out of range.
    """

    def __init__(
        self,
        diffusion_model: DiffusionPolicy,
        folder: str | Path,
        *,
        train_batch_size: int = 16,
        gradient_accumulate_every: int = 1,
        augment_horizontal_flip: bool = True,
        train_lr: float = 1e-4,
        train_num_steps: int = 100_000,
        max_grad_norm: float = 1.0,
        ema_update_every: int = 10,
        ema_decay: float = 0.995,
        betas: tuple[float, float] = (0.9, 0.99),
        save_and_sample_every: int = 1000,
        num_samples: int = 25,
        results_folder: str | Path = "./results",
        amp: bool = False,
        mixed_precision_type: str = "fp16",
        split_batches: bool = True,
        convert_image_to: str | None = None,
        lr_warmup_steps: int = 0,
        lr_decay_steps: int | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
        sample_steps: int = 50,
    ):
        for name, value, low, high in (
            ("train_batch_size", train_batch_size, 1, None),
            ("gradient_accumulate_every", gradient_accumulate_every, 1, None),
            ("train_num_steps", train_num_steps, 0, None),
            ("ema_update_every", ema_update_every, 1, None),
            ("save_and_sample_every", save_and_sample_every, 1, None),
            ("num_samples", num_samples, 1, None),
            ("sample_steps", sample_steps, 1, MAX_TIMESTEPS),
            ("lr_warmup_steps", lr_warmup_steps, 0, None),
            ("lr_decay_steps", lr_decay_steps or 0, 0, None),
            ("seed", seed, 0, MAX_SEED - 1),
        ):
            check_integer(name, value, low, high)
        for name, value, high in (
            ("train_lr", train_lr, math.inf),
            ("max_grad_norm", max_grad_norm, math.inf),
            ("weight_decay", weight_decay, math.inf),
            ("ema_decay", ema_decay, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= high:
                raise ValueError(f"{name} must lie in [0, {high}], got {value!r}")
        if math.isqrt(num_samples) ** 2 != num_samples:
            raise ValueError(f"num_samples must be a square (1, 4, 9, ...) to fill a square grid, got {num_samples}")
        checkpoint.config_of(diffusion_model)  # a model that could not be saved is told now, not at the first milestone

        if amp and mixed_precision_type == "fp16" and PartialState().device.type == "cpu":
            raise ValueError("fp16 mixed precision needs a GPU; on a CPU use amp=False, or mixed_precision_type='bf16'")
        self.accelerator = Accelerator(mixed_precision=mixed_precision_type if amp else "no")
        device, processes = self.accelerator.device, self.accelerator.num_processes
        if split_batches and train_batch_size % processes:
            raise ValueError(f"train_batch_size = {train_batch_size} cannot be split evenly over {processes} processes")
        self.batch_size = (
            train_batch_size if split_batches else train_batch_size * processes
        )  # of one micro-batch, over all processes

        mode = convert_image_to or MODES.get(diffusion_model.channels, "RGB")
        if len(mode) != diffusion_model.channels:
            raise ValueError(
                f"the model has {diffusion_model.channels} channels, which convert_image_to={mode!r} does not give"
            )
        self.run = RunFolder(results_folder)
        self.dataset = ImageDataset(folder, diffusion_model.image_size, convert_image_to=mode)
        self.dataset.leave_out(self.run.samples, "a sample that this run has made")
        self.pixels = torch.from_numpy(self.dataset.images)  # uint8 [N,H,W,C]

        self.policy = diffusion_model.to(device)
        matrices = [p for p in self.policy.parameters() if p.ndim >= 2]
        vectors = [p for p in self.policy.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=train_lr,
            betas=betas,
            fused=True,  # one pass over each parameter without temporaries: 3 to 13 times faster on a CPU
        )
        # The decay at update k is about k / (k + 9): the average spans a tenth of the run, until it comes to ema_decay;
        # short runs are not held back by their beginning. ema_pytorch counts in steps, hence the factor.
        self.ema = EMA(
            self.policy,
            beta=ema_decay,
            update_every=ema_update_every,
            update_after_step=0,
            inv_gamma=9.0 * ema_update_every,
            power=1.0,
            include_online_model=False,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.policy, optimizer)

        self.step = 0
        self.augment_horizontal_flip, self.seed = augment_horizontal_flip, seed
        self.gradient_accumulate_every, self.max_grad_norm = gradient_accumulate_every, max_grad_norm
        self.train_lr, self.lr_warmup_steps, self.lr_decay_steps = train_lr, lr_warmup_steps, lr_decay_steps
        self.train_num_steps, self.save_and_sample_every = train_num_steps, save_and_sample_every
        self.num_samples, self.sample_steps = num_samples, sample_steps

    def train(self) -> None:
        """Go on from `step` to `train_num_steps`, saving and sampling on the way."""
        is_main = self.accelerator.is_main_process
        losses, since = [], time.monotonic()
        for _ in tqdm(
            range(self.step, self.train_num_steps),
            initial=self.step,
            total=self.train_num_steps,
            disable=not is_main,
            mininterval=1,
        ):
            losses.append(self.train_step())
            if self.step % LOG_EVERY_STEPS == 0:
                loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                images = len(losses) * self.batch_size * self.gradient_accumulate_every
                if is_main:
                    rate = images / (time.monotonic() - since)
                    self.run.log(
                        {
                            "step": self.step,
                            "loss": loss,
                            "lr": self.learning_rate(self.step - 1),
                            "images_per_s": round(rate, 2),
                        }
                    )
                losses, since = [], time.monotonic()
            if self.step % self.save_and_sample_every == 0 or self.step == self.train_num_steps:
                before = time.monotonic()
                self.save(self.step)
                self.sample(self.step)
                since += time.monotonic() - before  # the speed that is logged is that of training

    def train_step(self) -> Tensor:
        """One optimiser step on the pictures that `step` names; returns this process's mean loss, detached, still on
        the device.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        total = torch.zeros((), device=self.accelerator.device)
        for micro in range(self.gradient_accumulate_every):
            is_last = micro == self.gradient_accumulate_every - 1
            images, t, noise, self_condition = self.batch(self.step, micro)
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = (
                    self.model(images, t=t, noise=noise, self_condition=self_condition) / self.gradient_accumulate_every
                )
                self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update()
        return total

    def learning_rate(self, step: int) -> float:
        """The learning rate of the optimiser step that follows `step` done ones; a function of the step alone."""
        warmup = min(1.0, (step + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.lr_decay_steps))) if self.lr_decay_steps else 1.0
        return self.train_lr * warmup * decay

    def batch(self, step: int, micro: int) -> Batch:
        """This process's slice of a micro-batch; a function of (seed, step, micro) alone."""
        start = (step * self.gradient_accumulate_every + micro) * self.batch_size
        pictures = picture_order(self.seed, start, self.batch_size, len(self.pixels))
        random = generator(self.seed, 1, step, micro)
        t = torch.rand(self.batch_size, generator=random, dtype=torch.float64)
        noise = torch.randn(
            self.batch_size, self.policy.channels, self.policy.image_size, self.policy.image_size, generator=random
        )
        flips = torch.rand(self.batch_size, generator=random) < 0.5
        coin = torch.rand((), generator=random).item()

        share = self.batch_size // self.accelerator.num_processes
        mine = slice(share * self.accelerator.process_index, share * (self.accelerator.process_index + 1))
        images = to_float(self.pixels[pictures[mine]])
        if self.augment_horizontal_flip:
            images = torch.where(flips[mine, None, None, None], images.flip(-1), images)
        device = self.accelerator.device
        return Batch(images.to(device), t[mine], noise[mine].to(device), coin < self.policy.train_prob_self_cond)

    # ------------------------------------------------------------------------
    # Milestones. A milestone is the step it was taken at.

    def sample(self, milestone: int) -> None:
        """samples/<milestone>.png: the EMA's images from the same seeds as at every other milestone."""
        if self.accelerator.is_main_process:
            images = self.ema.ema_model.sample(self.num_samples, timesteps=self.sample_steps, seed=self.seed)
            with replacing(self.run.sample(milestone)) as path:
                path.write_bytes(encode_png(grid(to_uint8(images))))

    def save(self, milestone: int) -> None:
        """checkpoints/<milestone>/: the EMA's weights as a checkpoint folder, and training-state/ with all that `load`
        needs.
        """
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        with replacing(self.run.checkpoint(milestone)) as folder:
            checkpoint.save(self.ema.ema_model, folder, step=self.step, dataset=self.dataset.folder.resolve().name)
            state = folder / "training-state"
            state.mkdir()
            save_file(self._tensors(), state / "state.safetensors")
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            record = {"step": self.step, "seed": self.seed, "lr_decay_steps": self.lr_decay_steps, "scaler": scaler}
            (state / "state.json").write_text(json.dumps(record), encoding="utf-8")
        # Later ones are of another run in this folder: this one has not come so far.
        for old in [m for m in self.run.milestones() if m <= milestone][:-KEEP_TRAINING_STATES]:
            stale = self.run.checkpoint(old) / "training-state"
            for file in stale.glob("*"):
                file.unlink()
            if stale.is_dir():
                stale.rmdir()

    def load(self, milestone: int) -> None:
        """Go back to a milestone of this run; training goes on with the step after it. Raises CheckpointError where
        that cannot be.
        """
        state = self.run.checkpoint(milestone) / "training-state"
        if not (state / "state.json").is_file():
            resumable = [
                m for m in self.run.milestones() if (self.run.checkpoint(m) / "training-state" / "state.json").is_file()
            ]
            raise checkpoint.CheckpointError(
                f"cannot resume from step {milestone} in {self.run.path}: "
                f"only the last {KEEP_TRAINING_STATES} checkpoints keep what resuming needs; "
                + (f"there are: {', '.join(map(str, resumable))}" if resumable else "there are none")
            )
        try:
            self._restore(state)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            problem = f"{state.parent}: cannot resume from its training-state ({error})"
            raise checkpoint.CheckpointError(problem) from None

    def _restore(self, state: Path) -> None:
        record = json.loads((state / "state.json").read_text(encoding="utf-8"))
        tensors: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, value in load_file(state / "state.safetensors").items():
            part, _, rest = name.partition("/")
            tensors[part][rest] = value
        self.policy.load_state_dict(tensors["model"])
        self.ema.load_state_dict(tensors["ema"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors["optimizer"].items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if record["scaler"] and self.accelerator.scaler:  # a run begun in fp16 may go on without
            self.accelerator.scaler.load_state_dict(record["scaler"])
        # The run's own, whatever this Trainer was made with: another seed or horizon would be another run.
        self.step, self.seed, self.lr_decay_steps = record["step"], record["seed"], record["lr_decay_steps"]

    def _tensors(self) -> dict[str, Tensor]:
        """All a resumed run starts from, under flat names: model/..., ema/..., optimizer/<parameter>/<moment>."""
        parts = {f"model/{name}": value for name, value in self.policy.state_dict().items()}
        parts |= {f"ema/{name}": value for name, value in self.ema.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            parts |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
        return {name: value.detach().cpu().clone() for name, value in parts.items()}


def generator(*key: int) -> torch.Generator:
    """A random stream that is a function of `key` alone."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, 0, epoch))


def picture_order(seed: int, start: int, count: int, n: int) -> Tensor:
    """Positions [start, start + count) of the endless concatenation of permutations of n pictures, one per epoch ->
    picture indices [count].
    """
    position, parts = start, []
    while position < start + count:
        epoch, offset = divmod(position, n)
        parts.append(permutation(seed, epoch, n)[offset : offset + start + count - position])
        position += len(parts[-1])
    return torch.cat(parts)
