"""Train a model on a folder of images, in one process or several, with Hugging Face accelerate.

Exact resume: the randomness of step k is a function of (seed, k), and a checkpoint contains everything else that a
step changes (see dp.training.batches). A resumed run is therefore bit-identical to an uninterrupted one, and sampling
or saving does not affect training. Random numbers are drawn for the global batch, and each process takes its slice, so
several processes train the same model as one.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration
from ema_pytorch import EMA
from torch import Tensor
from tqdm.auto import tqdm

from dp.checkpoints import folder as checkpoint
from dp.checkpoints import schema
from dp.data.codec import MODES, encode_png, to_float
from dp.data.dataset import ImageDataset
from dp.diffusion.policy import DiffusionPolicy
from dp.system.device import best_device, is_out_of_memory
from dp.system.records import readable
from dp.system.validation import MAX_SEED, MAX_TIMESTEPS, check_integer, quote
from dp.training.batches import Batch, draw_batch, learning_rate
from dp.training.precision import trains_in_bfloat16
from dp.training.reporter import RunReporter
from dp.training.run_folder import RunFolder
from dp.training.samples import FAST_SAMPLING, sample_grid
from dp.training.state import prune, read_state, restore, resumable_steps, state_tensors, translate_errors, write_state

LOG_EVERY_STEPS, MAX_ROLLBACKS = 10, 3


class Trainer:
    """Trains `diffusion_model` on the images below `folder`, from `step` to `train_num_steps`. A network with classes
    learns those of the class folders, see `ImageDataset`.

    train_batch_size: images per micro-batch, over all processes if `split_batches`, else per process. An optimizer step
    takes `gradient_accumulate_every` micro-batches. lr_warmup_steps, lr_decay_steps: linear warm-up, then a cosine to 0
    at `lr_decay_steps`, and a tenth of `train_lr` beyond (None: no decay). weight_decay: applies to matrices and
    convolutions only. The EMA is updated every `ema_update_every` steps, and its decay warms up to `ema_decay` per
    update. Every `save_and_sample_every` steps and at the end, the trainer saves a checkpoint and a grid of
    `num_samples` EMA images, square or with a column for each class, sampled in `sample_steps` steps and always from
    the same seeds. amp, mixed_precision_type: 'bf16' or 'fp16' autocast; fp16 needs a GPU. log_with: one or
    several of accelerate's trackers. A policy with `consistency` is tuned from its weights; `lr_decay_steps` is then
    also the length of the tuning (None: at its end from the first step on), and the samples show 1, 2 and
    4 calls. Raises ValueError for a setting out of range.
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
                raise ValueError(f"{name} must be in [0, {high}], got {quote(value)}")
        if len(diffusion_model.sample_shape) != 3:
            advice = "train one of sequences in a loop of your own, with policy(sequences, observations)"
            raise ValueError(f"Trainer trains models of images, got samples {diffusion_model.sample_shape}: {advice}")
        if math.isqrt(num_samples) ** 2 != num_samples:
            raise ValueError(f"num_samples must be a square (1, 4, 9, ...) to fill a grid, got {quote(num_samples)}")
        # Fail now rather than at the first checkpoint if the model cannot be saved.
        checkpoint.config_of(diffusion_model.model, {"policy": diffusion_model.config})

        best = best_device()
        if best.type == "cuda" and best.index is not None:  # set by DP_DEVICE; accelerate uses the current device
            torch.cuda.set_device(best)
        if amp and mixed_precision_type == "fp16" and PartialState(cpu=best.type == "cpu").device.type == "cpu":
            raise ValueError("fp16 mixed precision needs a GPU; on a CPU use amp=False, or mixed_precision_type='bf16'")
        self.run = RunFolder(results_folder)
        precision, trackers = mixed_precision_type if amp else "no", str(self.run.path / "trackers")
        tracking = {"log_with": log_with, "project_config": ProjectConfiguration(logging_dir=trackers)}
        self.accelerator = Accelerator(cpu=best.type == "cpu", mixed_precision=precision, **tracking)
        if log_with and not self.accelerator.log_with:  # accelerate silently drops trackers that are not installed
            raise ValueError(f"log_with={quote(log_with)}: its package is not installed")
        device, processes = self.accelerator.device, self.accelerator.num_processes
        if split_batches and train_batch_size % processes:
            raise ValueError(f"train_batch_size = {train_batch_size} cannot be split evenly over {processes} processes")
        self.batch_size = train_batch_size * (1 if split_batches else processes)  # of a micro-batch, over all processes

        mode = convert_image_to or MODES.get(diffusion_model.channels, "RGB")
        if len(mode) != diffusion_model.channels:
            channels = f"the model has {diffusion_model.channels} channels"
            raise ValueError(f"{channels}, which does not match convert_image_to={quote(mode)}")
        num_classes = diffusion_model.num_classes
        options = {"convert_image_to": mode, "classes": bool(num_classes)}
        self.dataset = ImageDataset(folder, diffusion_model.image_size, **options)
        self.dataset.exclude(self.run.samples, "a sample image of this run")
        if num_classes and len(self.dataset.classes) != num_classes:
            found = f"the images have {len(self.dataset.classes)} classes"
            raise ValueError(f"{found}, but the network has {num_classes}: they must be as many")
        self.pixels = torch.from_numpy(self.dataset.images)  # uint8 [N,H,W,C]
        self.labels = torch.tensor(self.dataset.labels) if num_classes else None

        self.policy = diffusion_model.to(device)
        matrices = {"params": [p for p in self.policy.parameters() if p.ndim >= 2], "weight_decay": weight_decay}
        vectors = {"params": [p for p in self.policy.parameters() if p.ndim < 2], "weight_decay": 0.0}
        # fused: one pass over each parameter without temporaries, 3 to 13 times faster on a CPU.
        optimizer = torch.optim.AdamW([matrices, vectors], lr=train_lr, betas=betas, fused=True)
        # The decay at update k is about k / (k + 9): until it reaches ema_decay, the average spans a tenth of the run,
        # so early weights do not dominate short runs. ema_pytorch counts in steps, hence the factor ema_update_every.
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
        self.card |= {"classes": self.dataset.classes} if num_classes else {}
        self.card |= {"sampling": FAST_SAMPLING} if diffusion_model.consistency else {}
        self.step, self.lr_factor = 0, 1.0
        self.rollbacks = 0  # since the last scheduled checkpoint; each halves lr_factor
        self.saved: int | None = None  # the last checkpoint saved or loaded, to roll back to
        self.resume_warning = ""  # about checkpoints that `resume` skipped
        images_per_step = self.batch_size * gradient_accumulate_every
        self.reporter = RunReporter(self.run, self.accelerator, images_per_step, train_num_steps, self.dataset.classes)

    @classmethod
    def from_run(cls, folder: str | Path) -> Trainer:
        """Create the trainer of a run folder from its config.json and dataset, see `trains_in_bfloat16` if that does
        not set `amp`. Raises ValueError if the config is not valid.
        """
        run = RunFolder(folder)
        config, where = run.config(), f"config.json of the run {quote(run.id)}"
        settings = config.get("trainer", {})
        model = {key: config[key] for key in ("network", "policy") if key in config}
        schema.check_config(model, where)
        if unknown := settings.keys() - cls.__init__.__kwdefaults__.keys() | settings.keys() & {"results_folder"}:
            raise ValueError(f"{where}: unknown field {quote(min(unknown))} in trainer")
        if "amp" not in settings and trains_in_bfloat16(run):
            settings = settings | {"amp": True, "mixed_precision_type": "bf16"}
        try:
            torch.manual_seed(settings.get("seed", 0))  # a run started again has the same initial weights
            network = checkpoint.build(model, where)
            if model["policy"].get("consistency"):
                checkpoint.load_weights(run.start, network)
            policy = DiffusionPolicy(network, **model["policy"])
            trainer = cls(policy, run.dataset, **settings, results_folder=run.path)
        except (TypeError, LookupError, OverflowError, AttributeError) as error:  # such as text for a number
            raise ValueError(f"{where}: a field of trainer has a value of the wrong type ({error})") from error
        card = {"dataset": config.get("dataset", {}).get("name"), "license": config.get("license")}
        card |= {"original": config.get("original")}
        trainer.card |= {key: value for key, value in card.items() if value}
        return trainer

    def train(self) -> str:
        """Train from `step` to `train_num_steps` and return 'finished', or 'paused' or 'stopped' as requested through
        the run folder.

        Checkpoints and samples are saved on the way. If the loss becomes NaN or inf, the run rolls back to the last
        checkpoint with half the learning rate. Raises OSError if the disk is full; existing checkpoints stay intact.
        """
        with self.run.hold_lock() if self.reporter.is_main else nullcontext():
            try:
                self._draw_missing_samples()
                end = self._train_loop() if self.step < self.train_num_steps else "finished"
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError("out of memory: choose a smaller batch or a smaller model") from error
            finally:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
            self.reporter.close(end, self.step)
            return end

    def _train_loop(self) -> str:
        self._initial_state = None if self.saved is not None else self._state()
        self.reporter.open(self.step, self.resume_warning)
        is_hidden = None if self.reporter.is_main else True  # None: hidden unless in a terminal
        with tqdm(initial=self.step, total=self.train_num_steps, disable=is_hidden, mininterval=1) as progress:
            while self.step < self.train_num_steps:
                if commands := self.reporter.requested_commands(self.step):
                    if not self.reporter.is_finite(self.policy.parameters()):
                        self._roll_back()  # the commands are handled after the next step
                    elif end := self._handle_commands(commands):
                        return end
                self.reporter.losses.append(self.train_step())
                is_saved = self._is_scheduled()
                is_recorded = self.step % LOG_EVERY_STEPS == 0
                if (is_saved or is_recorded) and not self.reporter.is_finite(self.policy.parameters()):
                    self._roll_back()
                    continue
                if is_recorded:
                    self.reporter.record(self.step, self.learning_rate(self.step - 1))
                if is_saved:
                    with self.reporter.writing():
                        self.save(self.step)
                        self.sample(self.step)
                progress.update(self.step - progress.n)
        return "finished"

    def _is_scheduled(self) -> bool:
        return self.step % self.save_and_sample_every == 0 or self.step == self.train_num_steps

    def _draw_missing_samples(self) -> None:
        """Sample at the current step if the process that saved its checkpoint ended before it had."""
        if self.saved == self.step and self._is_scheduled():
            with self.reporter.writing():
                if not self.run.sample(self.step).exists():
                    self.sample(self.step)

    def _handle_commands(self, commands: set[str]) -> str | None:
        """Save and sample as requested; return 'stopped' or 'paused' if the run is to end."""
        with self.reporter.writing():
            if commands != {"sample"} and self.saved != self.step:
                self._save(self.step, is_scheduled=False)
            if "sample" in commands:
                self.sample(self.step)
            self.reporter.clear_requests(commands)
        return "stopped" if "stop" in commands else "paused" if "pause" in commands else None

    def _roll_back(self) -> None:
        """Return to the last checkpoint, or to the initial state, and halve the learning rate once more."""
        step, factor, rollbacks = self.step, self.lr_factor / 2, self.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            tried = f"although the learning rate was halved {MAX_ROLLBACKS} times"
            advice = "duplicate this run with a smaller learning rate"
            raise ValueError(f"the loss became NaN or inf near step {step}, {tried}: {advice}")
        self.load(self.saved) if self.saved is not None else self._restore(*self._initial_state)
        self.lr_factor, self.rollbacks = factor, rollbacks
        text = f"loss became NaN or inf near step {step}; rolled back to step {self.step}, learning rate halved"
        self.reporter.event(self.step, text)

    # ------------------------------------------------------------------------
    # One step

    def train_step(self) -> Tensor:
        """Take optimizer step `step` and return this process's mean loss, a detached scalar on the device."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        total = torch.zeros((), device=self.accelerator.device)
        for micro in range(self.gradient_accumulate_every):
            is_last = micro == self.gradient_accumulate_every - 1
            batch = self.batch(self.step, micro)
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                each, _ = self.model(**batch._asdict(), per_image=True)
                loss = each.mean() / self.gradient_accumulate_every
                self.accelerator.backward(loss)
            total += loss.detach()
            self.reporter.add(batch.t, batch.condition, each.detach())
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
        """Return this process's slice of a micro-batch, a function of (seed, step, micro) alone."""
        sizes = self.gradient_accumulate_every, self.batch_size, self.policy.sample_shape, len(self.pixels)
        drawn, device = draw_batch(self.seed, step, micro, *sizes), self.accelerator.device
        size = self.batch_size // self.accelerator.num_processes
        mine = slice(size * self.accelerator.process_index, size * (self.accelerator.process_index + 1))
        images = to_float(self.pixels[drawn.indices[mine]])
        if self.augment_horizontal_flip:
            images = torch.where(drawn.flips[mine, None, None, None], images.flip(-1), images)
        self_condition = drawn.self_cond_u < self.policy.train_prob_self_cond
        progress = min(1.0, step / self.lr_decay_steps) if self.lr_decay_steps else 1.0
        batch = Batch(images.to(device), drawn.t[mine], drawn.noise[mine].to(device), self_condition, progress)
        if self.labels is None:
            return batch
        drop = drawn.drop_u[mine] < self.policy.condition_drop_prob
        return batch._replace(condition=self.labels[drawn.indices[mine]], drop=drop)

    # ------------------------------------------------------------------------
    # Checkpoints and samples, which are stored under the step they were made at

    def sample(self, step: int) -> None:
        """Write samples/<step>.png: images of the EMA model, always from the same seeds (see `sample_grid`)."""
        if self.reporter.is_main:
            heartbeat = partial(self.reporter.heartbeat, self.step)
            grid = sample_grid(self.ema.ema_model, self.num_samples, self.sample_steps, self.seed, heartbeat)
            with self.run.replacing(self.run.sample(step)) as path:
                path.write_bytes(encode_png(grid))

    def save(self, milestone: int) -> None:
        """Write checkpoints/<step>/ for the step `milestone`: the EMA weights, and the training state for `load`.

        All checkpoints are kept, but only the last few keep their training state.
        """
        self._save(milestone, is_scheduled=True)

    def _save(self, step: int, is_scheduled: bool) -> None:
        """Save a checkpoint. One that is not scheduled is deleted once it is no longer among the last few."""
        self.accelerator.wait_for_everyone()
        if is_scheduled:
            self.rollbacks = 0
        if self.reporter.is_main:
            with self.run.replacing(self.run.checkpoint(step)) as folder:
                average = self.ema.ema_model
                config = {"policy": average.config, "step": self.step, **self.card}
                checkpoint.save(folder, average.model, config)
                write_state(folder, *self._state(), is_scheduled)
            prune(self.run, step)
        self.saved, self._initial_state = step, None

    def resume(self) -> None:
        """Load the newest intact checkpoint of the run folder, or stay at the beginning if there is no checkpoint.

        Raises CheckpointError if all checkpoints are damaged.
        """
        first_error = None
        for step in reversed(resumable_steps(self.run)):
            try:
                checkpoint.inspect(self.run.checkpoint(step))
                self.load(step)
            except schema.CheckpointError as error:
                first_error = first_error or error
            else:
                self.resume_warning = f"skipped a damaged checkpoint: {first_error}" if first_error else ""
                return
        if first_error:
            raise first_error

    def load(self, milestone: int) -> None:
        """Load the checkpoint of the step `milestone`; training continues with the step after it. Raises
        CheckpointError if it has no training state, or a damaged one.
        """
        tensors, record = read_state(self.run, milestone)
        with translate_errors(self.run.checkpoint(milestone)):
            self._restore(tensors, record)
        self.saved = milestone

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that a step changes, in the form that `write_state` and `_restore` take."""
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        record = {"step": self.step, "seed": self.seed, "lr_decay_steps": self.lr_decay_steps, "scaler": scaler}
        record |= {"lr_factor": self.lr_factor, "rollbacks": self.rollbacks}
        record |= {"precision": self.accelerator.mixed_precision}
        return state_tensors(self.policy, self.ema, self.optimizer), record

    def _restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        restore(tensors, self.policy, self.ema, self.optimizer)
        if record["scaler"] and self.accelerator.scaler:  # a run started with fp16 may continue without it
            self.accelerator.scaler.load_state_dict(record["scaler"])
        # Those of the run override the arguments of this Trainer, which would make it another run.
        self.step, self.seed, self.lr_decay_steps = record["step"], record["seed"], record["lr_decay_steps"]
        self.lr_factor, self.rollbacks = record["lr_factor"], record["rollbacks"]
