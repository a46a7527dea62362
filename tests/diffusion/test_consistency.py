"""Consistency tuning: the loss in closed form, its two calls, rows that do not mix, and the sampler that it is for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from gaussian import GaussianDenoiser
from torch import Tensor, nn

from dp.diffusion import consistency
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.schedules import level, make_schedule

MU, S = 0.1, 0.15  # within [-1, 1], where x0 is clamped


class GaussianConsistency(GaussianDenoiser):
    """The consistency function of pixels N(mu, s²): along a path of the ODE a pixel keeps its number of deviations from
    the mean. Song et al. 2023, arXiv 2303.01469, def. 1.
    """

    def predict(self, x, alpha, sigma):
        return self.mu + self.s * (x - alpha * self.mu) / (alpha**2 * self.s**2 + sigma**2) ** 0.5


def tuned(model: nn.Module, **keywords) -> DiffusionPolicy:
    return DiffusionPolicy(model, consistency=True, **keywords)


def batch(b: int, channels: int = 3, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], pixels N(MU, S²) in [-1, 1], and noise."""
    random = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, b, channels, side, side, generator=random, dtype=torch.float64)
    return (MU + S * x0 + 1) / 2, eps


def record(model: nn.Module) -> list[dict]:
    """A list that every call of the network joins from now on."""
    calls: list[dict] = []

    def hook(_, args, kwargs, output):
        calls.append(kwargs | {"x": args[0], "time": args[1], "prediction": output[0], "latents_after": output[1]})

    model.register_forward_hook(hook, with_kwargs=True)
    return calls


SCHEDULES = {"linear": {}, "cosine": {"tau": 0.8}, "sigmoid": {"start": -3.0, "end": 5.0}}
every_schedule = pytest.mark.parametrize("schedule", [make_schedule(*one) for one in SCHEDULES.items()], ids=SCHEDULES)


@every_schedule
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_target_is_at_the_papers_ratio_of_noise_to_signal(schedule, scale):
    at = level(schedule, torch.linspace(0, 1, 41, dtype=torch.float64), scale)
    ratios = []
    for progress, stage in ((0.0, 16), (0.5, 64), (1.0, 256)):
        before = consistency.earlier(schedule, at, scale, progress)
        t, r = at.sigma / at.alpha, before.sigma / before.alpha
        expected = t * (1 - (1 + 8 / (1 + (-t).exp().reciprocal())) / stage)  # 8 sigmoid(-t)
        is_noisy = t >= consistency.ANCHOR
        assert 0 < (~is_noisy).sum() < 20 and (before.t[~is_noisy] == 0).all()
        is_noisy[-1] = False  # where the schedule is clipped
        torch.testing.assert_close(r[is_noisy], expected[is_noisy], rtol=1e-6, atol=1e-6)
        assert (before.t <= at.t).all()
        ratios.append((r / t)[is_noisy])
    assert (ratios[0] < ratios[1]).all() and (ratios[1] < ratios[2]).all() and (ratios[2] < 1).all()


@every_schedule
def test_the_loss_of_the_true_consistency_function_vanishes_as_r_approaches_t(schedule, monkeypatch):
    name = type(schedule).__name__.lower()
    trained = (name, SCHEDULES[name])
    policy = tuned(
        GaussianConsistency(MU, S, objective="x0", trained=trained),
        noise_schedule=name,
        schedule_kwargs=SCHEDULES[name],
        objective="x0",
    )
    images, eps = batch(64, channels=1)
    t, losses = torch.linspace(0.3, 0.9, 64, dtype=torch.float64), []
    monkeypatch.setattr(consistency, "HUBER", 0.0)
    for stage in (64, 256, 1024):
        monkeypatch.setattr(consistency, "LAST", stage)
        losses.append(policy.double()(images, t=t, noise=eps).item())
    ratios = [coarse / fine for coarse, fine in pairwise(losses)]
    assert ratios == pytest.approx([4, 4], rel=0.1)  # in proportion to t - r


def test_where_r_is_0_the_target_is_the_image():
    images, eps = batch(3, channels=1)
    t = torch.tensor([0.0, 0.01, 0.02], dtype=torch.float64)
    policy = tuned(GaussianDenoiser(MU, S, objective="x0"), objective="x0").double()
    at, x0 = level(policy.schedule, t), images * 2 - 1
    losses, log_snr = policy(images, t=t, noise=eps, per_image=True)
    alpha, sigma = at.alpha[:, None, None, None], at.sigma[:, None, None, None]
    prediction, _ = policy.predict(alpha * x0 + sigma * eps, t, None)
    rms = (prediction - x0).square().mean(dim=(1, 2, 3)).sqrt()
    huber = (rms**2 + consistency.HUBER**2).sqrt() - consistency.HUBER
    torch.testing.assert_close(losses, huber * consistency.loss_weight(at), check_dtype=False, rtol=1e-4, atol=1e-6)
    assert torch.equal(log_snr, at.log_snr)


def test_both_calls_have_the_same_noise_and_class_and_only_the_later_one_a_gradient(tiny_rin):
    policy = tuned(tiny_rin(num_classes=2), noise_schedule="cosine")
    calls = record(policy.model)
    images, eps = (part.float() for part in batch(3))
    t, drop = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64), torch.tensor([False, True, False])
    given = {"t": t, "noise": eps, "drop": drop, "self_condition": True}
    policy(images, torch.tensor([1, 2, 2]), **given).backward()
    first, first_r, target, last = calls
    before = consistency.earlier(policy.schedule, level(policy.schedule, t), 1.0, 1.0)
    for call, time in ((first, t), (first_r, before.t), (target, before.t), (last, t)):
        at = level(policy.schedule, time)
        alpha, sigma = at.alpha.float()[:, None, None, None], at.sigma.float()[:, None, None, None]
        torch.testing.assert_close(call["x"], alpha * (images * 2 - 1) + sigma * eps)
        torch.testing.assert_close(call["time"], time.float())
        assert call["condition"].tolist() == [1, 0, 2]
    for call, carried in ((first, last), (first_r, target)):  # each has a carry of its own
        assert call["x_self_cond"] is None and carried["x_self_cond"].any()
        assert torch.equal(carried["latents"], call["latents_after"])
    assert [call["prediction"].requires_grad for call in calls] == [False, False, False, True]


def test_an_image_alone_has_the_loss_that_it_has_in_a_batch(tiny_rin):
    policy, (images, eps) = tuned(tiny_rin()), (part.float() for part in batch(4))
    t = torch.tensor([0.005, 0.2, 0.7, 1.0], dtype=torch.float64)
    losses, _ = policy(images, t=t, noise=eps, self_condition=True, per_image=True)
    for i in range(4):
        one = slice(i, i + 1)
        alone, _ = policy(images[one], t=t[one], noise=eps[one], self_condition=True, per_image=True)
        torch.testing.assert_close(alone, losses[one], rtol=1e-4, atol=1e-6)


def test_only_a_tuned_model_has_the_sampler_and_it_is_its_own(tiny_rin):
    model = tiny_rin()
    plain, policy = DiffusionPolicy(model, timesteps=3), tuned(model, timesteps=3)
    with pytest.raises(ValueError, match=r"consistency.*tuned"):
        plain.sample(1, sampler="consistency")
    assert torch.equal(policy.sample(2, seed=1), policy.sample(2, seed=1, sampler="consistency"))
    assert torch.equal(policy.sample(2, seed=1, sampler="ddim"), plain.sample(2, seed=1))
    steps = list(policy.stream(1, seed=5))
    stream = torch.Generator().manual_seed(5)
    draws = [torch.randn(3, 8, 8, generator=stream) for _ in steps]
    for step, before, noise in zip(steps[1:], steps, draws[1:]):
        at = level(policy.schedule, torch.tensor([step.time]))
        torch.testing.assert_close(step.x_t[0], (at.alpha * before.x0[0] + at.sigma * noise).float())
