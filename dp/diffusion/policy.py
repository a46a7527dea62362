"""DiffusionPolicy: a network made into a diffusion model. The training loss, and sampling step by step.

Images are in [0, 1] outside and in [-1, 1] inside; this module converts. `denoise` turns a noisy batch into x0; `step`
is the body of every sampling loop in the project: `stream` runs it for one request, the engine for all requests at
once. Every row has its own time, seed and state. The network is passed in and never imported; its contract is
`sample_shape`, by default (`channels`, `image_size`, `image_size`), and

    model(x [B,C,H,W], time [B], x_self_cond=None, latents=None, condition=None, return_latents=False)
        -> prediction [B,C,H,W], or with return_latents (prediction, latents [B,N,D])

where a row of zeros in `x_self_cond`, `latents` or `condition` means none, and a network without latents returns them
as [B,0,D]. A `sample_shape` (C, L) makes it a network for sequences: all that is [B,C,H,W] here is then [B,C,L].
`condition` [B] int64 is the class, from 1 to `num_classes`; or for a network with an `observation_shape` (O, F) it is
the observation [B,O,F] (`dp.diffusion.conditions`). A network with neither attribute, or with 0 and None, is
unconditional and gets no condition. A network may require an `objective`, `scale` or `schedule` of its policy, in a
dict `requires`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from dp.diffusion import consistency as tuning
from dp.diffusion.conditions import check_condition, check_observation, no_observation, without
from dp.diffusion.guidance import Branches
from dp.diffusion.plan import make_plan
from dp.diffusion.samplers import expand_rows, sample_axes, update
from dp.diffusion.schedules import Level, checked, level, make_schedule
from dp.diffusion.settings import OBJECTIVES, SampleSettings
from dp.diffusion.state import (
    SampleState,
    Step,
    TensorDict,
    apply_known,
    init_state,
    join_carries,
    join_guidance,
    join_noise,
    join_plans,
    split,
)
from dp.system.validation import is_number, quote


class DiffusionPolicy(nn.Module):
    """A diffusion model around `model` (the contract above).

    timesteps: sampling steps when a call names none. use_ddim: the default sampler is DDIM, else DDPM. noise_schedule,
    schedule_kwargs: the training schedule. objective: what the network predicts, 'x0', 'eps' or 'v'. time_difference:
    in units of t, 0 to 1 (see `make_plan`). min_snr_loss_weight, min_snr_gamma: min-SNR weighting, Hang et al. 2023,
    arXiv 2303.09556. train_prob_self_cond: share of training batches that are self-conditioned (Chen et al. 2022, arXiv
    2208.04202). scale: input scaling in (0, 1], Chen 2023, arXiv 2301.10972, sec. 3. condition_drop_prob: share of
    training images whose class is dropped, so that the network also learns to predict without one (see
    `dp.diffusion.guidance`). uniform_loss_weight: weight 1 for every image, whatever the objective. consistency: the
    model is tuned for few calls (see `dp.diffusion.consistency`): that is its loss, and the default sampler is
    'consistency'. Raises ValueError, with the value, for anything out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        timesteps: int = 1000,
        use_ddim: bool = True,
        noise_schedule: str = "sigmoid",
        schedule_kwargs: dict | None = None,
        objective: str = "v",
        time_difference: float = 0.0,
        min_snr_loss_weight: bool = True,
        min_snr_gamma: float = 5,
        train_prob_self_cond: float = 0.9,
        scale: float = 1.0,
        condition_drop_prob: float = 0.1,
        uniform_loss_weight: bool = False,
        consistency: bool = False,
    ):
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {quote(objective)}; choose one of: {', '.join(OBJECTIVES)}")
        if consistency and objective == "eps":
            reason = "in pure noise, the noise says nothing about x0"
            raise ValueError(f"a consistency model predicts 'v' or 'x0', got objective 'eps': {reason}")
        for rule, value, holds in (  # the first two again, since None has a meaning to SampleSettings
            ("timesteps must be a whole number", timesteps, lambda x: True),
            ("time_difference must lie in [0, 1]", time_difference, lambda x: 0 <= x <= 1),
            ("scale must lie in (0, 1]", scale, lambda x: 0 < x <= 1),
            ("train_prob_self_cond must lie in [0, 1]", train_prob_self_cond, lambda x: 0 <= x <= 1),
            ("min_snr_gamma must be positive", min_snr_gamma, lambda x: x > 0),
            ("condition_drop_prob must lie in [0, 1]", condition_drop_prob, lambda x: 0 <= x <= 1),
        ):
            if not is_number(value) or not holds(value):
                raise ValueError(f"{rule}, got {quote(value)}")
        scheduled = {"noise_schedule": noise_schedule, "schedule_kwargs": schedule_kwargs}
        lengths = {"timesteps": timesteps, "time_difference": time_difference}
        sampler = "consistency" if consistency else "ddim" if use_ddim else "ddpm"
        self.defaults = SampleSettings(sampler=sampler, **lengths, **scheduled)
        self.schedule = checked(make_schedule(noise_schedule, schedule_kwargs), scale)
        own = {"objective": objective, "scale": scale, "schedule": self.schedule}
        for name, needed in getattr(model, "requires", {}).items():
            if own[name] != needed:
                raise ValueError(f"{type(model).__name__} requires {name} = {needed}, got {own[name]}")
        self.model = model
        sampling = {"timesteps": timesteps, "use_ddim": use_ddim, "time_difference": time_difference}
        trained = {"noise_schedule": noise_schedule, "schedule_kwargs": dict(schedule_kwargs or {})}
        trained |= {"objective": objective, "scale": scale, "train_prob_self_cond": train_prob_self_cond}
        trained |= {"min_snr_loss_weight": min_snr_loss_weight, "min_snr_gamma": min_snr_gamma}
        trained |= {"condition_drop_prob": condition_drop_prob, "uniform_loss_weight": uniform_loss_weight}
        trained |= {"consistency": consistency}
        self.config = sampling | trained  # the keywords that make this policy again
        self.objective, self.scale, self.train_prob_self_cond = objective, scale, train_prob_self_cond
        self.min_snr_gamma = min_snr_gamma if min_snr_loss_weight else math.inf
        self.condition_drop_prob, self.uniform_loss_weight = condition_drop_prob, uniform_loss_weight
        self.consistency = consistency
        self.num_classes = getattr(model, "num_classes", 0)
        self.observation_shape = getattr(model, "observation_shape", None)
        # Tracks the device and dtype even if the network has no parameters, as a closed-form denoiser.
        self.register_buffer("_device_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._device_anchor.device

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W) of an image, (C, L) of a sequence."""
        own = getattr(self.model, "sample_shape", None)
        side = None if own else self.model.image_size
        return tuple(own or (self.model.channels, side, side))

    @property
    def channels(self) -> int:
        return self.sample_shape[0]

    @property
    def image_size(self) -> int:
        """The side of the images in pixels. Raises ValueError for a policy of sequences."""
        if len(self.sample_shape) < 3:
            raise ValueError(f"a policy of sequences {self.sample_shape} has no image_size")
        return self.sample_shape[-1]

    # ------------------------------------------------------------------------
    # From a prediction to x0

    def predict(
        self, x_t: Tensor, t: Tensor, carry: TensorDict | None, condition: Tensor | None = None, **model_kwargs
    ) -> tuple[Tensor, ...]:
        """Return the network's raw prediction [B,C,H,W] and latents [B,N,D] at training time `t` [B], given x0 and
        latents of `carry` and the condition of each image. model_kwargs: further keywords of the network.
        """
        x = x_t
        if self.scale < 1:  # Chen 2023, sec. 3: without it the input's variance would fall with t and with the scale
            x = x_t / x_t.std(dim=sample_axes(x_t), keepdim=True, unbiased=False).clamp(min=1e-5)
        x0, latents = (carry["x0"], carry["latents"]) if carry else (None, None)
        t = t.to(x.dtype).to(x.device)
        if (self.num_classes or self.observation_shape) and condition is not None:
            model_kwargs["condition"] = condition.to(x.device)
        return self.model(x, t, x_self_cond=x0, latents=latents, return_latents=True, **model_kwargs)

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return x0 in [-1, 1] for a prediction made at training time `t` [B]."""
        return self._unclamped_x0(prediction, x_t, level(self.schedule, t, self.scale)).clamp(-1, 1)

    def _unclamped_x0(self, prediction: Tensor, x_t: Tensor, at: Level) -> Tensor:
        alpha, sigma, power = expand_rows(x_t, at.alpha, at.sigma, at.alpha**2 + at.sigma**2)
        if self.objective == "eps":
            prediction = (x_t - sigma * prediction) / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
        elif self.objective == "v":
            prediction = (alpha * x_t - sigma * prediction) / power
        return prediction

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        carry: TensorDict | None,
        condition: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, TensorDict]:
        """Run the network once on x_t [B,C,H,W] at times t [B] of the training schedule, with the carry of the previous
        call (None or rows of zeros for none). condition: of each image, [B] or [B,O,F], zeros for none. guidance: its
        weight [B] float64 on the CPU, 1 by default. Return x0 [B,C,H,W] in [-1, 1] and the new carry.
        """
        if condition is None or guidance is None or bool((guidance == 1).all()):
            prediction, latents = self.predict(x_t, t, carry, condition)
            latents_none = torch.zeros_like(latents)
        else:
            branches = Branches.of(condition, guidance)
            if carry:
                latents = branches.latents(carry["latents"], carry["latents_none"])
                carry = {"x0": branches.rows(carry["x0"]), "latents": latents}
            condition = without(branches.rows(condition), branches.is_unconditional)
            prediction, latents = self.predict(branches.rows(x_t), branches.rows(t), carry, condition)
            prediction, (latents, latents_none) = branches.combine(prediction), branches.split_latents(latents)
        x0 = self.to_x0(prediction, x_t, t)
        return x0, {"x0": x0, "latents": latents, "latents_none": latents_none}

    # ------------------------------------------------------------------------
    # Training

    def forward(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        self_condition: bool | None = None,
        drop: Tensor | None = None,
        progress: float = 1.0,
        per_image: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the training loss of images [B,C,H,W] in [0, 1]: a scalar, or with `per_image` (loss [B], log_snr
        [B]). condition: the class of each image, [B] of integers from 0, none, to `num_classes`, or its observation
        [B,O,F]. An unconditional network ignores it.

        If t [B] in [0, 1], noise [B,C,H,W], self_condition or drop [B] bool, the images whose condition is dropped, is
        not given, it is drawn from torch's global generator. progress: of consistency tuning, from 0 to 1.
        """
        self._check_shape("images", images.shape)
        if not images.is_floating_point():
            raise ValueError(f"images must be floats in [0, 1], got {images.dtype}")
        x0 = images * 2 - 1
        t = torch.rand(len(x0), dtype=torch.float64) if t is None else t
        eps = torch.randn_like(x0) if noise is None else noise
        self_condition = torch.rand(()).item() < self.train_prob_self_cond if self_condition is None else self_condition
        condition = self._dropped(condition, drop, len(x0))
        at = level(self.schedule, t, self.scale)
        if self.consistency:
            before = tuning.earlier(self.schedule, at, self.scale, progress)
            loss = self._consistency_losses(x0, eps, at, before, condition, self_condition)
        else:
            loss = self._diffusion_losses(x0, eps, at, condition, self_condition)
        return (loss, at.log_snr) if per_image else loss.mean()

    def _diffusion_losses(
        self, x0: Tensor, eps: Tensor, at: Level, condition: Tensor | None, self_condition: bool
    ) -> Tensor:
        """Return the weighted squared error [B] of the prediction at the levels `at`."""
        alpha, sigma = expand_rows(x0, at.alpha, at.sigma)
        x_t = alpha * x0 + sigma * eps
        carry = self._first_call(x_t, at, condition) if self_condition else None
        prediction, _ = self.predict(x_t, at.t, carry, condition)
        target = {"x0": x0, "eps": eps}[self.objective] if self.objective != "v" else alpha * eps - sigma * x0
        error = (prediction.float() - target.float()).square().mean(dim=sample_axes(x0))  # [B]
        return error * self.loss_weight(at.alpha, at.sigma).to(error.dtype).to(error.device)  # [B]: each its own weight

    def _consistency_losses(
        self, x0: Tensor, eps: Tensor, at: Level, before: Level, condition: Tensor | None, self_condition: bool
    ) -> Tensor:
        """Return the weighted distance [B] between x0 at the levels `at` and `before`: `dp.diffusion.consistency`. Each
        has a carry of its own: with the same, x0 of the carry would be the same x0 for both, whatever x_t.
        """
        alpha, sigma, alpha_r, sigma_r = expand_rows(x0, at.alpha, at.sigma, before.alpha, before.sigma)
        x_t, x_r = alpha * x0 + sigma * eps, alpha_r * x0 + sigma_r * eps
        carry, carry_r = (
            self._first_call(x, where, condition) if self_condition else None for x, where in ((x_t, at), (x_r, before))
        )
        with torch.no_grad():
            target, _ = self.denoise(x_r, before.t, carry_r, condition)
        (is_noisy,) = expand_rows(x0, before.t > 0)
        target = torch.where(is_noisy > 0, target, x0)
        prediction, _ = self.predict(x_t, at.t, carry, condition)
        # Without the clamp, which has no gradient beyond its bounds.
        error = self._unclamped_x0(prediction.float(), x_t, at) - target.float()
        return tuning.pseudo_huber(error) * tuning.loss_weight(at).to(error.dtype).to(error.device)

    def _first_call(self, x_t: Tensor, at: Level, condition: Tensor | None) -> TensorDict:
        """Return what a call at the levels `at` carries into the next one, without a gradient."""
        with torch.no_grad():
            return self.denoise(x_t, at.t, None, condition)[1]

    def _dropped(self, condition: Tensor | None, drop: Tensor | None, count: int) -> Tensor | None:
        """Return the condition of `count` training images, zeros for those of `drop`; None if the network has none."""
        if condition is None or not (self.num_classes or self.observation_shape):
            return None
        check_condition(condition, count, self.num_classes, self.observation_shape)
        drop = torch.rand(count) < self.condition_drop_prob if drop is None else drop
        return without(condition if self.observation_shape else condition.long(), drop)

    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the weight of each image [B], which is always finite: min-SNR, Hang et al. 2023, sec. 3.4, where an
        infinite gamma means no cap; or 1 for all.
        """
        if self.uniform_loss_weight:
            return torch.ones_like(alpha)
        snr = alpha**2 / (sigma**2).clamp(min=1e-9)
        capped = snr.clamp(max=self.min_snr_gamma)
        if self.objective == "eps":
            return (self.min_snr_gamma / snr).clamp(max=1)  # capped / snr, where snr may have rounded to 0
        return capped if self.objective == "x0" else capped / (snr + 1)

    # ------------------------------------------------------------------------
    # Sampling

    def init_state(
        self, settings: SampleSettings, start: Tensor | None = None, mask: Tensor | None = None
    ) -> SampleState:
        """Return the state of a new request before its first step (see `state.init_state`)."""
        settings = settings.with_defaults(self.defaults)
        if (label := max(settings.labels)) > self.num_classes:
            classes = f"the classes of this model are 1 to {self.num_classes}, and 0 means none"
            reason = classes if self.num_classes else "this model has no classes"
            raise ValueError(f"label {label} does not exist: {reason}")
        if settings.sampler == "consistency" and not self.consistency:
            reason = "it draws sharp images only from a model that was tuned for it, and this one was not"
            raise ValueError(f"the sampler 'consistency' cannot be used: {reason}; choose another")
        if settings.observation is not None:
            check_observation(settings.observation, self.observation_shape)
        elif self.observation_shape:  # so that it can share a call with requests that have one
            settings = replace(settings, observation=no_observation(self.observation_shape))
        plan = make_plan(settings, self.schedule, self.scale)
        return init_state(plan, settings, self._device_anchor.new_empty(0, *self.sample_shape), start, mask)

    @torch.no_grad()
    def step(self, states: Sequence[SampleState]) -> list[tuple[SampleState, Step]]:
        """Take the next step of every request: one network call and one update, for all images of all `states`. Return
        for each request its state after the step, and the record of the step.
        """
        sizes = [len(state) for state in states]
        x_t, carry = torch.cat([state.x_t for state in states]), join_carries(states)
        time, rows = join_plans(states)
        x0, after = self.denoise(x_t, time, carry, *join_guidance(states))
        x0 = after["x0"] = apply_known(states, x0)
        x_s = update(x_t, x0, carry and carry["x0"], join_noise(states), rows).split(sizes)
        return [state.advanced(*parts) for state, *parts in zip(states, x_s, split(after, sizes))]

    def stream(
        self, batch_size: int = 16, *, start: Tensor | None = None, mask: Tensor | None = None, **settings
    ) -> Iterator[Step]:
        """Yield the run as it happens: one Step per network call, none skipped. Keywords as in `SampleSettings`; with
        `strength`, start [C,H,W] or [B,C,H,W] in [0, 1] is the image to start from, and mask [H,W] or [B,1,H,W] is
        True where it is kept; of sequences, [C,L] or [B,C,L] and [L] or [B,1,L]. Raises ValueError at once for bad
        settings. Leaving the loop early stops the run.
        """
        return self.run(self.init_state(SampleSettings(batch_size, **settings), start, mask))

    def run(self, state: SampleState) -> Iterator[Step]:
        """Yield the steps that are left of a run."""
        while not state.is_finished:
            [(state, step)] = self.step([state])
            yield step

    def sample(self, batch_size: int = 16, **settings) -> Tensor:
        """Return images [B,C,H,W], or sequences [B,C,L], in [0, 1]. Keywords as in `stream`: timesteps, sampler,
        noise_schedule, schedule_kwargs, time_difference, eta, seed, label, guidance, observation, ... An image depends
        on its own seed, `seed + i`, not on the others.
        """
        for step in self.stream(batch_size, **settings):  # noqa: B007 (the last one counts)
            pass
        return (step.x0 + 1) / 2

    def ddpm_sample(self, shape: tuple[int, ...], time_difference: float | None = None) -> Tensor:
        """Run `sample` with the DDPM sampler, for samples of `shape` (b, *sample_shape)."""
        self._check_shape("shape", shape)
        return self.sample(shape[0], sampler="ddpm", time_difference=time_difference)

    def ddim_sample(self, shape: tuple[int, ...], time_difference: float | None = None) -> Tensor:
        """Run `sample` with the DDIM sampler, for samples of `shape` (b, *sample_shape)."""
        self._check_shape("shape", shape)
        return self.sample(shape[0], sampler="ddim", time_difference=time_difference)

    def _check_shape(self, what: str, shape: Sequence[int]) -> None:
        if tuple(shape[1:]) != self.sample_shape:
            raise ValueError(f"{what} must be (batch, {', '.join(map(str, self.sample_shape))}), got {tuple(shape)}")

    # Checkpoints: the one place that reaches up a layer, so that this reads as in every other library.

    @classmethod
    def from_pretrained(cls, source: str | Path, *, token=None, revision: str | None = None) -> DiffusionPolicy:
        """The model of a checkpoint folder, or of "user/name" on the Hugging Face Hub where there is none, on the CPU
        in float32. token, revision: as in `hub.models.download`. Raises CheckpointError or HubError with what is wrong.
        """
        from dp.checkpoints import folder as checkpoint
        from dp.hub import models

        network, config = checkpoint.load(models.resolve(source, token=token, revision=revision))
        return cls(network, **config["policy"])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint folder (config.json, model.safetensors, README.md) that `from_pretrained` reads."""
        from dp.checkpoints import folder as checkpoint

        checkpoint.save(folder, self.model, {"policy": self.config})

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Publish as "user/name" on the Hugging Face Hub, and return the address. Options and errors: as in
        `hub.models.upload`.
        """
        from dp.hub import models

        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self.save_pretrained(folder)
            return models.upload(folder, repo_id, **options)
