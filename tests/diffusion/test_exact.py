"""The exact denoiser against float64 references that use none of its code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian import reference_gamma

from dp import DiffusionPolicy, ExactDenoiser
from dp.diffusion import exact
from dp.diffusion.exact import effective_count

SCHEDULES = [("linear", {}), ("cosine", {}), ("sigmoid", {}), ("sigmoid", {"start": -3.0, "end": 7.0})]
TIMES = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.03, 0.0], dtype=torch.float64)


def some_images(count: int, side: int = 4, channels: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def noisy(images: torch.Tensor, name: str, kwargs: dict, times: torch.Tensor) -> torch.Tensor:
    """A different image of the set at each time, in [-1, 1] with noise."""
    gamma = torch.from_numpy(reference_gamma(name, kwargs, times.numpy()))[:, None, None, None]
    x0 = images[torch.arange(len(times)) % len(images)] * 2 - 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return gamma.sqrt() * x0 + (1 - gamma).sqrt() * eps


def reference(images, x_t, gamma, labels=None, mirrored=False, condition=None):
    """The weight of each image [B,N] and the mean [B,C,H,W], image by image in NumPy."""
    images, x_t, weights, means = images.numpy() * 2 - 1, x_t.numpy(), [], []
    for row, (x, g) in enumerate(zip(x_t, gamma)):
        versions = [images, images[..., ::-1]] if mirrored else [images]
        far = np.stack([((x - np.sqrt(g) * version) ** 2).sum(axis=(1, 2, 3)) for version in versions])  # [V,N]
        if condition is not None and condition[row]:
            far[:, labels != condition[row]] = np.inf
        if g == 1:
            w = (far == far.min()).astype(float)
        else:
            w = np.exp(-(far - far.min()) / (2 * (1 - g)))
        w /= w.sum()
        weights.append(w.sum(axis=0))
        means.append(sum(np.einsum("n,nchw->chw", a, version) for a, version in zip(w, versions)))
    return np.stack(weights), np.stack(means)


@pytest.mark.parametrize("name, kwargs", SCHEDULES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_the_weights_and_the_mean_are_those_of_the_closed_form(name, kwargs, mirrored, count, monkeypatch):
    monkeypatch.setattr(exact, "CHUNK", 32 * 100)  # several chunks
    images, labels = some_images(count), np.arange(count) % 3
    denoiser = ExactDenoiser(images, labels=labels, mirrored=mirrored, noise_schedule=name, schedule_kwargs=kwargs)
    x_t, gamma = noisy(images, name, kwargs, TIMES), reference_gamma(name, kwargs, TIMES.numpy())
    for condition in (None, np.resize([0, min(count - 1, 2), min(count - 1, 1)], len(TIMES))):
        weights, means = reference(images, x_t, gamma, labels, mirrored, condition)
        asked = condition if condition is None else torch.from_numpy(condition)
        np.testing.assert_allclose(denoiser(x_t, TIMES, condition=asked).numpy(), means, atol=1e-6)
        np.testing.assert_allclose(denoiser.posterior(x_t, TIMES, asked).numpy(), weights, atol=1e-6)


def test_equal_images_and_their_mirror_images_count_once():
    image, other = some_images(2)
    images = torch.stack([image, other, image, image.flip(-1)])
    x_t, time = torch.zeros(1, 2, 4, 4, dtype=torch.float64), torch.ones(1)
    plain = ExactDenoiser(images).posterior(x_t, time)
    torch.testing.assert_close(plain, torch.tensor([[0.5, 0.25, 0, 0.25]]).double(), atol=1e-6, rtol=0)
    mirrored = ExactDenoiser(images, mirrored=True).posterior(x_t, time)
    torch.testing.assert_close(mirrored, torch.tensor([[0.75, 0.25, 0, 0]]).double(), atol=1e-6, rtol=0)
    assert effective_count(torch.eye(3).double()).tolist() == [1, 1, 1]
    assert effective_count(torch.full((1, 8), 1 / 8).double()).item() == pytest.approx(8)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"])
def test_sampling_in_many_steps_returns_the_images_of_the_set(sampler):
    images = some_images(5, side=8, channels=3).float()
    denoiser = ExactDenoiser(images, labels=[1, 1, 2, 2, 2])
    policy = DiffusionPolicy(denoiser, objective="x0")
    label = [0, 0, 1, 1, 2, 2]
    samples = policy.sample(6, timesteps=1000, sampler=sampler, seed=0, label=label)
    far = (samples[:, None] - images).abs().amax(dim=(2, 3, 4))  # [6,5]
    assert far.amin(dim=1).max() < 1e-3
    nearest = far.argmin(dim=1).tolist()
    assert set(nearest[2:4]) <= {0, 1} and set(nearest[4:]) <= {2, 3, 4}


def test_a_row_alone_equals_the_row_in_a_batch_and_float32_stays_float32():
    images = some_images(9).float()
    denoiser, times = ExactDenoiser(images, mirrored=True), TIMES.float()
    x_t = noisy(images.double(), "sigmoid", {}, TIMES).float()
    together, latents = denoiser(x_t, times, return_latents=True)
    assert together.dtype == torch.float32 and latents.shape == (len(TIMES), 0, 1)
    for i in range(len(TIMES)):
        torch.testing.assert_close(denoiser(x_t[i : i + 1], times[i : i + 1])[0], together[i], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (torch.rand(2, 3, 4, 5), {}, r"one square image, got torch.float32 of shape \(2, 3, 4, 5\)"),
        (torch.rand(0, 3, 4, 4), {}, "at least one square image"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {}, "must be floats .* got torch.uint8"),
        (torch.full((2, 1, 4, 4), 1.5), {}, r"must lie in \[0, 1\], got 1.5 to 1.5"),
        (torch.full((2, 1, 4, 4), torch.nan), {}, r"must lie in \[0, 1\]"),
        (torch.rand(2, 1, 4, 4), {"labels": [1]}, "labels must be 2 whole numbers"),
        (torch.rand(2, 1, 4, 4), {"labels": [1, -1]}, "labels must be 2 whole numbers"),
        (torch.rand(2, 1, 4, 4), {"labels": [1.5, 1]}, "labels must be 2 whole numbers"),
        (torch.rand(2, 1, 4, 4), {"noise_schedule": "line"}, "unknown noise schedule"),
    ],
)
def test_what_does_not_fit_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        ExactDenoiser(images, **options)


def test_a_class_without_images_and_a_policy_that_does_not_fit_are_refused():
    denoiser = ExactDenoiser(some_images(2), labels=[1, 3])
    x_t = torch.zeros(2, 2, 4, 4)
    with pytest.raises(ValueError, match="there is no image of class 2: the classes are 1 to 3"):
        denoiser(x_t, torch.ones(2), condition=torch.tensor([1, 2]))
    for options, message in (
        ({"objective": "v"}, "requires objective = x0, got v"),
        ({"objective": "x0", "scale": 0.5}, "requires scale = 1.0, got 0.5"),
        ({"objective": "x0", "noise_schedule": "linear"}, "requires schedule = Sigmoid.* got Linear"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffusionPolicy(denoiser, **options)


@pytest.mark.soak
def test_twenty_thousand_images_fit_into_little_memory():
    images = some_images(20_000, side=16, channels=3).float()
    denoiser = ExactDenoiser(images, mirrored=True)
    x_t = noisy(images.double(), "sigmoid", {}, TIMES)
    weights, means = reference(images.double(), x_t, reference_gamma("sigmoid", {}, TIMES.numpy()), mirrored=True)
    np.testing.assert_allclose(denoiser(x_t, TIMES).numpy(), means, atol=1e-6)
    np.testing.assert_allclose(denoiser.posterior(x_t, TIMES).numpy(), weights, atol=1e-6)
