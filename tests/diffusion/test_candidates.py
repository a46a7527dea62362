"""Which training images a run could still become, at each of its steps."""

import pytest
import torch

from dp.diffusion.candidates import find_candidates, nearest_images
from dp.diffusion.exact import ExactDenoiser
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings


def exact_policy(count: int = 20, mirrored: bool = False) -> DiffusionPolicy:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 6, 6, generator=generator)
    return DiffusionPolicy(ExactDenoiser(images, mirrored=mirrored), objective="x0", timesteps=30)


def begin(policy, **settings):
    return policy.init_state(SampleSettings(batch_size=4, seed=0, **settings).with_defaults(policy.defaults))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm"])
def test_all_images_are_possible_at_first_and_the_result_at_last(sampler):
    policy = exact_policy()
    found = find_candidates(policy, policy.model, begin(policy, sampler=sampler), range(1, 31), most=3)
    assert found.steps == list(range(1, 31))
    assert found.counts.shape == (30, 4) and found.likeliest.shape == found.weights.shape == (30, 4, 3)
    torch.testing.assert_close(found.counts[0], torch.full((4,), 20.0).double(), atol=0.5, rtol=0)
    torch.testing.assert_close(found.counts[-1], torch.ones(4).double(), atol=1e-3, rtol=0)
    nearest, distances = nearest_images(policy.model, found.x0)
    assert nearest.tolist() == found.likeliest[-1, :, 0].tolist() and distances.max() < 1e-3
    assert (found.weights.diff(dim=2) <= 0).all()
    assert torch.equal(found.x0, policy.sample(4, sampler=sampler, seed=0) * 2 - 1)  # the run is the same run


def test_the_counts_are_those_of_the_posterior_of_each_image_alone():
    policy = exact_policy(mirrored=True)
    together = find_candidates(policy, policy.model, begin(policy), [2, 9, 17])
    for i in range(4):
        alone = find_candidates(policy, policy.model, begin(policy)[i : i + 1], [2, 9, 17])
        torch.testing.assert_close(alone.counts[:, 0], together.counts[:, i], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.likeliest[:, 0, 0], together.likeliest[:, i, 0])


def test_a_run_that_was_stopped_is_followed_to_its_last_step():
    policy = exact_policy()
    found = find_candidates(policy, policy.model, begin(policy, sampler="ddim"), [1, 10])
    steps = list(policy.stream(4, sampler="ddim", seed=0))
    assert found.steps == [1, 10] and torch.equal(found.x0, steps[9].x0)


def test_the_mirror_image_counts_as_the_image():
    policy = exact_policy(mirrored=True)
    images = policy.model.images.view(-1, 3, 6, 6)
    nearest, distances = nearest_images(policy.model, images[[4, 7]].flip(-1) * 0.9)
    assert nearest.tolist() == [4, 7]
    assert distances.tolist() == pytest.approx((images[[4, 7]] * 0.05).square().mean(dim=(1, 2, 3)).sqrt().tolist())
