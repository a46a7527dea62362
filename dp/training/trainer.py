"""Trainer: from a folder of pictures to a model. Hugging Face accelerate underneath, so that one process or many run
the same code.

The same run, whatever interrupts it (see `dp.training.batches`): no random state is kept, because every random number
is a function of the seed and the number of the step. So a resumed run is the same run to the bit, and sampling or
saving in between disturbs nothing. The numbers are drawn for the whole global batch, of which each process keeps its
slice: two processes do what one does.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration
from ema_pytorch import EMA
from torch import Tensor
from tqdm.auto import tqdm

from dp.checkpoints import folder as checkpoint
from dp.checkpoints import schema
from dp.data.codec import MODES, encode_png, grid, to_float, to_uint8
from dp.data.dataset import ImageDataset
from dp.diffusion.policy import DiffusionPolicy
from dp.system.device import best_device, is_out_of_memory
from dp.system.records import readable
from dp.system.validation import MAX_SEED, MAX_TIMESTEPS, check_integer, quote
from dp.training.batches import draw, learning_rate
from dp.training.reporter import Journal
from dp.training.run_folder import RunFolder
from dp.training.state import prune, read_state, restore, resumable, tensors_of, told_by_name, write_state

LOG_EVERY_STEPS, MAX_SETBACKS = 10, 3


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
    at `lr_decay_steps`, and a tenth of `train_lr` beyond (None: no decay). weight_decay: on matrices and convolutions
    only. EMA: every `ema_update_every` steps, its decay warming up to `ema_decay` per update. Every
    `save_and_sample_every` steps and at the end: a checkpoint, and a square grid of `num_samples` EMA images in
    `sample_steps` steps, always from the same seeds. amp, mixed_precision_type: 'bf16' or 'fp16' autocast; fp16 needs a
    GPU. log_with: a tracker, or several, of accelerate's. Raises ValueError for a setting out of range.
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
        log_with: str | list[str] | None = None,
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
                raise ValueError(f"{name} must lie in [0, {high}], got {quote(value)}")
        if math.isqrt(num_samples) ** 2 != num_samples:
            raise ValueError(f"num_samples must be a square (1, 4, 9, ...) to fill a grid, got {quote(num_samples)}")
        # Raise now if the model cannot be saved, not at the first checkpoint.
        checkpoint.config_of(diffusion_model.model, {"policy": diffusion_model.config})

        best = best_device()
        if best.type == "cuda" and best.index is not None:  # named by DP_DEVICE; accelerate takes the current one
            torch.cuda.set_device(best)
        if amp and mixed_precision_type == "fp16" and PartialState(cpu=best.type == "cpu").device.type == "cpu":
            raise ValueError("fp16 mixed precision needs a GPU; on a CPU use amp=False, or mixed_precision_type='bf16'")
        self.run = RunFolder(results_folder)
        precision, trackers = mixed_precision_type if amp else "no", str(self.run.path / "trackers")
        tracking = {"log_with": log_with, "project_config": ProjectConfiguration(logging_dir=trackers)}
        self.accelerator = Accelerator(cpu=best.type == "cpu", mixed_precision=precision, **tracking)
        if log_with and not self.accelerator.log_with:  # which drops in silence what is not installed
            raise ValueError(f"log_with={quote(log_with)}: its package is not installed")
        device, processes = self.accelerator.device, self.accelerator.num_processes
        if split_batches and train_batch_size % processes:
            raise ValueError(f"train_batch_size = {train_batch_size} cannot be split evenly over {processes} processes")
        self.batch_size = train_batch_size * (1 if split_batches else processes)  # of one micro-batch, over all of them

        mode = convert_image_to or MODES.get(diffusion_model.channels, "RGB")
        if len(mode) != diffusion_model.channels:
            channels = f"the model has {diffusion_model.channels} channels"
            raise ValueError(f"{channels}, which convert_image_to={quote(mode)} does not give")
        self.dataset = ImageDataset(folder, diffusion_model.image_size, convert_image_to=mode)
        self.dataset.leave_out(self.run.samples, "a sample that this run has made")
        self.pixels = torch.from_numpy(self.dataset.images)  # uint8 [N,H,W,C]

        self.policy = diffusion_model.to(device)
        matrices = {"params": [p for p in self.policy.parameters() if p.ndim >= 2], "weight_decay": weight_decay}
        vectors = {"params": [p for p in self.policy.parameters() if p.ndim < 2], "weight_decay": 0.0}
        # fused: one pass over each parameter without temporaries, 3 to 13 times faster on a CPU.
        optimizer = torch.optim.AdamW([matrices, vectors], lr=train_lr, betas=betas, fused=True)
        # The decay at update k is about k / (k + 9): the average spans a tenth of the run, until it comes to ema_decay;
        # short runs are not held back by their beginning. ema_pytorch counts in steps, hence the factor.
        warming_up = {"update_after_step": 0, "inv_gamma": 9.0 * ema_update_every, "power": 1.0}
        averaging = {"beta": ema_decay, "update_every": ema_update_every, **warming_up}
        self.ema = EMA(self.policy, include_online_model=False, **averaging)
        self.model, self.optimizer = self.accelerator.prepare(self.policy, optimizer)

        self.augment_horizontal_flip, self.seed = augment_horizontal_flip, seed
        self.gradient_accumulate_every, self.max_grad_norm = gradient_accumulate_every, max_grad_norm
        self.train_lr, self.lr_warmup_steps, self.lr_decay_steps = train_lr, lr_warmup_steps, lr_decay_steps
        self.train_num_steps, self.save_and_sample_every = train_num_steps, save_and_sample_every
        self.num_samples, self.sample_steps = num_samples, sample_steps
        self.card: dict[str, Any] = {"dataset": readable(self.dataset.folder.resolve().name)}
        self.step, self.lr_factor, self.setbacks = 0, 1.0, 0  # setbacks since the last milestone; each halves lr_factor
        self.saved: int | None = None  # the checkpoint that this state comes from, to step back to
        self.passed_over = ""  # what `resume` had to say
        self.journal = Journal(self.run, self.accelerator, self.batch_size * gradient_accumulate_every, train_num_steps)

    @classmethod
    def of(cls, folder: str | Path) -> Trainer:
        """The trainer that a run folder's config.json and dataset ask for; with bf16 on CUDA unless they say otherwise.
        Raises ValueError with what is wrong.
        """
        run = RunFolder(folder)
        config, where = run.config(), f"config.json of the run {quote(run.id)}"
        settings = config.get("trainer", {})
        model = {key: config[key] for key in ("network", "policy") if key in config}
        schema.check_config(model, where)
        if unknown := settings.keys() - cls.__init__.__kwdefaults__.keys() | settings.keys() & {"results_folder"}:
            raise ValueError(f"{where}: unknown field {quote(min(unknown))} in trainer")
        if "amp" not in settings and best_device().type == "cuda" and torch.cuda.is_bf16_supported():
            settings = settings | {"amp": True, "mixed_precision_type": "bf16"}
        try:
            torch.manual_seed(settings.get("seed", 0))  # so that a run that begins again is the same run, too
            policy = DiffusionPolicy(checkpoint.build(model, where), **model["policy"])
            trainer = cls(policy, run.dataset, **settings, results_folder=run.path)
        except (TypeError, LookupError, OverflowError, AttributeError) as error:  # text for a number, and the like
            raise ValueError(f"{where}: a field of trainer has a value of the wrong kind ({error})") from error
        card = {"dataset": config.get("dataset", {}).get("name"), "license": config.get("licence")}
        trainer.card |= {key: value for key, value in card.items() if value}
        return trainer

    def train(self) -> str:
        """Go on from `step` to `train_num_steps`, saving and sampling on the way and obeying what the run folder asks;
        returns how it ended: 'finished', 'paused' or 'stopped'. A loss that is no longer a number steps back to the
        last checkpoint, with half the learning rate. Raises OSError where the disk is full; nothing is lost then.
        """
        with self.run.held() if self.journal.is_main else nullcontext():
            try:
                end = self._go_on() if self.step < self.train_num_steps else "finished"
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError("not enough memory: choose fewer pictures per batch, or a smaller model") from error
            finally:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
            self.journal.close(end, self.step)
            return end

    def _go_on(self) -> str:
        self._start = None if self.saved is not None else self._state()
        self.journal.open(self.step, self.passed_over)
        is_hidden = None if self.journal.is_main else True  # None: where it is no terminal
        with tqdm(initial=self.step, total=self.train_num_steps, disable=is_hidden, mininterval=1) as progress:
            while self.step < self.train_num_steps:
                if asked := self.journal.asked(self.step):
                    if not self.journal.is_sound(self.policy.parameters()):
                        self._step_back()  # what was asked is done a step later
                    elif end := self._obey(asked):
                        return end
                self.journal.losses.append(self.train_step())
                is_milestone = self.step % self.save_and_sample_every == 0 or self.step == self.train_num_steps
                is_recorded = self.step % LOG_EVERY_STEPS == 0
                if (is_milestone or is_recorded) and not self.journal.is_sound(self.policy.parameters()):
                    self._step_back()
                    continue
                if is_recorded:
                    self.journal.record(self.step, self.learning_rate(self.step - 1))
                if is_milestone:
                    with self.journal.writing():
                        self.save(self.step)
                        self.sample(self.step)
                progress.update(self.step - progress.n)
        return "finished"

    def _obey(self, asked: set[str]) -> str | None:
        """Returns how the run ends, if it does."""
        with self.journal.writing():
            if asked != {"sample"} and self.saved != self.step:
                self._save(self.step, is_milestone=False)
            if "sample" in asked:
                self.sample(self.step)
            self.journal.obeyed(asked)
        return "stopped" if "stop" in asked else "paused" if "pause" in asked else None

    def _step_back(self) -> None:
        """To the last checkpoint, or to where `train` set out, with the learning rate halved once more."""
        at, factor, setbacks = self.step, self.lr_factor / 2, self.setbacks + 1
        if setbacks > MAX_SETBACKS:
            tried = f"although the learning rate was halved {MAX_SETBACKS} times"
            advice = "make a duplicate of this run with a smaller learning rate"
            raise ValueError(f"the loss is no longer a number near step {at}, {tried}: {advice}")
        self.load(self.saved) if self.saved is not None else self._restore(*self._start)
        self.lr_factor, self.setbacks = factor, setbacks
        words = f"the loss was no longer a number near step {at}: back to step {self.step}, with half the learning rate"
        self.journal.event(self.step, words)

    # ------------------------------------------------------------------------
    # One step

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
                each, _ = self.model(images, t=t, noise=noise, self_condition=self_condition, per_image=True)
                loss = each.mean() / self.gradient_accumulate_every
                self.accelerator.backward(loss)
            total += loss.detach()
            self.journal.add(t, each.detach())
        self.accelerator.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update()
        return total

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step` (0-based): warm-up × cosine × rollback factor."""
        return learning_rate(step, self.train_lr * self.lr_factor, self.lr_warmup_steps, self.lr_decay_steps)

    def batch(self, step: int, micro: int) -> Batch:
        """This process's slice of a micro-batch; a function of (seed, step, micro) alone."""
        sizes = self.gradient_accumulate_every, self.batch_size, self.policy.image_shape, len(self.pixels)
        whole, device = draw(self.seed, step, micro, *sizes), self.accelerator.device
        share = self.batch_size // self.accelerator.num_processes
        mine = slice(share * self.accelerator.process_index, share * (self.accelerator.process_index + 1))
        images = to_float(self.pixels[whole.pictures[mine]])
        if self.augment_horizontal_flip:
            images = torch.where(whole.flips[mine, None, None, None], images.flip(-1), images)
        self_condition = whole.coin < self.policy.train_prob_self_cond
        return Batch(images.to(device), whole.t[mine], whole.noise[mine].to(device), self_condition)

    # ------------------------------------------------------------------------
    # Milestones. A milestone is the step it was taken at.

    def sample(self, milestone: int) -> None:
        """samples/<milestone>.png: the EMA's images from the same seeds as at every other milestone."""
        if self.journal.is_main:
            for step in self.ema.ema_model.stream(self.num_samples, timesteps=self.sample_steps, seed=self.seed):
                self.journal.live(self.step)
                images = (step.x0 + 1) / 2
            with self.run.replacing(self.run.sample(milestone)) as path:
                path.write_bytes(encode_png(grid(to_uint8(images))))

    def save(self, milestone: int) -> None:
        """checkpoints/<milestone>/: the EMA's weights as a checkpoint folder, and training-state/ with all that `load`
        needs.
        """
        self._save(milestone, is_milestone=True)

    def _save(self, milestone: int, is_milestone: bool) -> None:
        """Delete saved states that are no checkpoints once they are no longer among the last few."""
        self.accelerator.wait_for_everyone()
        if is_milestone:
            self.setbacks = 0
        if self.journal.is_main:
            with self.run.replacing(self.run.checkpoint(milestone)) as folder:
                average = self.ema.ema_model
                config = {"policy": average.config, "step": self.step, **self.card}
                checkpoint.save(folder, average.model, config)
                write_state(folder, *self._state(), is_milestone)
            prune(self.run, milestone)
        self.saved, self._start = milestone, None

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run folder, or from the beginning where there is none. Raises
        CheckpointError where there are only damaged ones.
        """
        problem = None
        for milestone in reversed(resumable(self.run)):
            try:
                checkpoint.inspect(self.run.checkpoint(milestone))
                self.load(milestone)
            except schema.CheckpointError as error:
                problem = problem or error
            else:
                self.passed_over = f"passed over, since it is damaged: {problem}" if problem else ""
                return
        if problem:
            raise problem

    def load(self, milestone: int) -> None:
        """Go back to a milestone of this run; training goes on with the step after it. Raises CheckpointError where
        that cannot be.
        """
        tensors, record = read_state(self.run, milestone)
        with told_by_name(self.run.checkpoint(milestone)):
            self._restore(tensors, record)
        self.saved = milestone

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that a step changes, as a training state stores it and `_restore` takes it."""
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        record = {"step": self.step, "seed": self.seed, "lr_decay_steps": self.lr_decay_steps, "scaler": scaler}
        record |= {"lr_factor": self.lr_factor, "setbacks": self.setbacks}
        return tensors_of(self.policy, self.ema, self.optimizer), record

    def _restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        restore(tensors, self.policy, self.ema, self.optimizer)
        if record["scaler"] and self.accelerator.scaler:  # a run begun in fp16 may go on without
            self.accelerator.scaler.load_state_dict(record["scaler"])
        # The run's own, whatever this Trainer was made with: another seed or horizon would be another run.
        self.step, self.seed, self.lr_decay_steps = record["step"], record["seed"], record["lr_decay_steps"]
        self.lr_factor, self.setbacks = record["lr_factor"], record["setbacks"]
