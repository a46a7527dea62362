"""One step taken apart: its parts add up to x_t and to the x_t of the next step, whatever the run."""

from __future__ import annotations

import math

import pytest
import torch

from dp import DiffusionPolicy, SampleSettings
from dp.diffusion.parts import amplify, gaussian_blur, take_apart
from dp.diffusion.samplers import SAMPLERS

START = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(64).reshape(8, 8) % 3 == 0
RUNS = {
    **{name: {"sampler": name} for name in SAMPLERS},
    "eta": {"sampler": "ddim", "eta": 0.6},
    "guidance": {"sampler": "dpmpp_2m", "label": (2, 0, 3), "guidance": 3.0, "guidance_interval": (0.2, 0.8)},
    "mask": {"sampler": "ddpm", "strength": 0.8, "start": START, "mask": MASK},
    "schedule": {"sampler": "dpmpp_2m_sde", "noise_schedule": "cosine", "time_difference": 0.1},
    "steep": {"sampler": "ddim", "noise_schedule": "sigmoid", "schedule_kwargs": {"start": -60.0, "end": 60.0}},
}


def state_of(policy, start=None, mask=None, **settings):
    return policy.init_state(SampleSettings(3, timesteps=5, seed=4, **settings), start, mask)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_parts_add_up_in_every_step(tiny_rin, name, channels):
    policy = DiffusionPolicy(tiny_rin(num_classes=3, channels=channels), consistency=True)
    run = RUNS[name] | ({"start": START[:1]} if name == "mask" and channels == 1 else {})
    state, before = state_of(policy, **run), None
    while not state.is_finished:
        parts, index = take_apart(policy, state), state.index
        [(state, step)] = policy.step([state])
        assert torch.equal(parts.x_s, state.x_t) and torch.equal(parts.x_t, step.x_t) and torch.equal(parts.x0, step.x0)
        assert (parts.alpha, parts.sigma) == (state.plan.t.alpha[index], state.plan.t.sigma[index])
        assert parts.coefficients == tuple(state.plan.table[index].tolist())
        if parts.sigma > 1e-6:
            torch.testing.assert_close(parts.alpha * parts.x0 + parts.sigma * parts.noise, parts.x_t)
        assert all(torch.isfinite(picture).all() for picture in (parts.noise, parts.change, parts.fresh))
        a, b, c, d = parts.coefficients
        mixed = a * parts.x_t + b * parts.x0 + c * parts.change + d * parts.fresh
        torch.testing.assert_close(mixed, parts.x_s)
        assert torch.equal(parts.change, torch.zeros_like(parts.x0) if before is None else parts.x0 - before)
        assert (parts.fresh.std() > 0.7) == bool(state.plan.draws[index])
        before = parts.x0


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "guidance", "mask"])
def test_a_row_of_a_batch_is_taken_apart_as_alone_and_the_known_pixels_are_in(tiny_rin, name):
    policy = DiffusionPolicy(tiny_rin(num_classes=3))
    state = state_of(policy, **RUNS[name])
    alone = state_of(policy, **RUNS[name])[1:2]
    for _ in range(3):
        [(state, _)], [(alone, _)] = policy.step([state]), policy.step([alone])
    batch, single = take_apart(policy, state), take_apart(policy, alone)
    for picture in ("x_t", "x0", "noise", "change", "fresh", "x_s"):
        torch.testing.assert_close(getattr(batch, picture)[1:2], getattr(single, picture), atol=1e-4, rtol=0)
    if name == "mask":
        assert torch.equal(batch.x0[:, :, MASK], (START * 2 - 1)[:, MASK].expand(3, -1, -1))


def test_looking_changes_nothing(tiny_rin):
    policy = DiffusionPolicy(tiny_rin())
    state, other = (state_of(policy, sampler="ddpm") for _ in range(2))
    for _ in range(5):
        first, second = take_apart(policy, state), take_apart(policy, state)
        assert torch.equal(first.fresh, second.fresh)
        [(state, _)], [(other, _)] = policy.step([state]), policy.step([other])
        assert torch.equal(state.x_t, other.x_t)


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("sigma", [0.02, 0.5, 0.9, 0.99])
def test_an_amplified_image_is_closer_to_the_image_than_x_t_is(size, sigma):
    """A smooth image in noise, in three channels: amplified, it correlates with the image strongly, or three times as
    much as x_t does.
    """
    at = torch.linspace(-1, 1, size)
    image = torch.stack([at.sin() * at[:, None], at + at[:, None], 1 - at**2 - at[:, None] ** 2])[None].clamp(-1, 1)
    alpha = math.sqrt(1 - sigma**2)
    x_t = alpha * image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    shown, width, gain = amplify(x_t, alpha, sigma)

    def correlation(picture):
        return torch.corrcoef(torch.stack([picture.flatten(), image.flatten()]))[0, 1]

    assert correlation(shown) > min(0.75, 3 * correlation(x_t))
    assert gain <= 1 / alpha + 1e-6 and 0 <= width <= size / 8 and (width == 0) == (sigma == 0.02)
    if width == 0:
        torch.testing.assert_close(shown, x_t / alpha)


def test_pure_noise_is_not_amplified_beyond_what_can_be_shown():
    x_t = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shown, width, gain = amplify(x_t, 3e-5, 1.0)
    assert width == 4 and 0.6 < shown.std() < 1.4 and gain * 3e-5 < 0.01
    assert torch.isfinite(amplify(x_t, 0.0, 1.0).image).all() and torch.isfinite(amplify(x_t, 1.0, 0.0).image).all()


def test_the_blur_keeps_a_constant_and_divides_noise_as_it_says():
    assert torch.allclose(gaussian_blur(torch.full((1, 1, 9, 9), 0.7), 2.0), torch.tensor(0.7))
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    left = gaussian_blur(noise, 3.0).std().item() * 2 * math.sqrt(math.pi) * 3.0
    assert left == pytest.approx(1, rel=0.1)
