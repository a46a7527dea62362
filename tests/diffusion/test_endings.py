"""Endings: the same beginning, fresh noise from a step on, and how many different images come of it."""

from __future__ import annotations

import pytest
import torch

from dp import DiffusionPolicy, SampleSettings
from dp.diffusion.endings import branch_off, branch_settings, distances, ending_seed, group, stochastic
from dp.diffusion.noise import NoiseStream
from dp.diffusion.replay import state_at_step
from dp.diffusion.samplers import SAMPLERS

STEPS = 5
START = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(64).reshape(8, 8) % 3 == 0
RUNS = {
    **{name: {"sampler": name} for name in SAMPLERS},
    "guidance": {"sampler": "dpmpp_2m", "label": (2, 0, 3), "guidance": 3.0, "guidance_interval": (0.2, 0.8)},
    "mask": {"sampler": "dpmpp_2m", "strength": 0.8, "start": START, "mask": MASK},
    "walk": {"sampler": "ddim", "eta": 0.3, "walk_to": 9},
    "schedule": {"sampler": "ddim", "noise_schedule": "cosine", "time_difference": 0.1},
}


@pytest.fixture
def policy(tiny_rin):
    return DiffusionPolicy(tiny_rin(num_classes=3), consistency=True)


def beginning(policy, index, row=1, start=None, mask=None, **settings):
    """The settings of a run, and its image `row` before step `index`."""
    settings = SampleSettings(3, timesteps=STEPS, seed=4, **settings).with_defaults(policy.defaults)
    return settings, state_at_step(policy, settings, row, index, start, mask)


def ends(policy, state):
    *_, step = policy.run(state)
    return (step.x0 + 1) / 2


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("index", [1, 3, STEPS])
def test_the_beginning_is_the_runs_and_the_rest_is_stochastic(policy, name, index):
    settings, state = beginning(policy, index, **RUNS[name])
    branch = branch_off(policy, settings, state, 8)
    assert len(branch) == 8 and branch.index == index - 1 and len(branch.plan) == STEPS
    assert torch.equal(branch.x_t, state.x_t.expand(8, -1, -1, -1))
    if index > 1:
        assert torch.equal(branch.carry["x0"], state.carry["x0"].expand(8, -1, -1, -1))
    assert all(torch.equal(a, b) for a, b in zip((*branch.plan.t, *branch.plan.s), (*state.plan.t, *state.plan.s)))
    assert branch.plan.draws.equal(branch.plan.s.t > 0)
    kept = settings.sampler if settings.sampler == "consistency" else "ddpm"
    expected = "dpmpp_2m_sde" if settings.sampler.startswith("dpmpp") else kept
    assert torch.equal(branch.plan.table, SAMPLERS[expected](branch.plan.t, branch.plan.s, 1.0))
    steps = list(policy.run(branch))
    assert [step.index for step in steps] == list(range(index, STEPS + 1))
    [(_, own)] = policy.step([state])  # the first prediction is made before any noise is added
    torch.testing.assert_close(steps[0].x0, own.x0.expand(8, -1, -1, -1), atol=1e-4, rtol=0)
    between = distances((steps[-1].x0 + 1) / 2) + torch.eye(8)
    if index == STEPS:
        assert (between - torch.eye(8)).max() < 1e-4
    elif index == 1:
        assert between.min() > 1e-3
    if name == "mask":
        kept = (START * 2 - 1)[:, MASK].expand(8, -1, -1)
        assert torch.equal(steps[-1].x0[:, :, MASK], kept)


def test_an_ending_is_the_same_alone_in_any_number_and_again(policy):
    settings, state = beginning(policy, 2, **RUNS["guidance"] | {"label": (2, 1, 3)})
    images = ends(policy, branch_off(policy, settings, state, 8))
    assert torch.equal(images, ends(policy, branch_off(policy, settings, state, 8)))
    torch.testing.assert_close(images[:3], ends(policy, branch_off(policy, settings, state, 3)), atol=1e-4, rtol=0)
    for j in (0, 5, 7):
        alone = ends(policy, branch_off(policy, settings, state, 8)[j : j + 1])
        torch.testing.assert_close(images[j : j + 1], alone, atol=1e-4, rtol=0)


def test_noise_that_a_failed_step_has_drawn_is_drawn_again(policy):
    settings, state = beginning(policy, 3, sampler="dpmpp_2m")
    branch, other = (branch_off(policy, settings, state, 4) for _ in range(2))
    branch.draw_noise()
    assert torch.equal(branch.with_noise_rewound().draw_noise(), other.draw_noise())


def test_the_noise_of_an_ending_depends_on_the_image_the_step_and_the_ending_alone():
    one, other, walk = NoiseStream(3), NoiseStream(4), NoiseStream(3, 9, 0.5)
    seeds = [ending_seed(stream, k, j) for stream in (one, other, walk) for k in (1, 2) for j in range(8)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert ending_seed(one, 2, 5) == 246986130  # in every process: another hash would change every ending


def test_the_settings_of_a_branch(policy):
    settings, _ = beginning(policy, 1, **RUNS["guidance"])
    assert branch_settings(settings, 0, 8).labels == (2,) * 8 and branch_settings(settings, 0, 8).guidance == 3
    assert branch_settings(settings, 1, 8).labels == (0,) * 8 and branch_settings(settings, 1, 8).guidance == 1
    walk, _ = beginning(policy, 1, **RUNS["walk"])
    assert (branch_settings(walk, 2, 1).walk_to, branch_settings(walk, 2, 1).eta) == (None, 1.0)
    assert stochastic(stochastic(settings)) == stochastic(settings)
    with pytest.raises(ValueError, match="image must be a whole number from 0 to 2, got 3"):
        branch_settings(settings, 3, 8)


def test_only_one_image_can_branch_off(policy):
    settings, _ = beginning(policy, 1, sampler="ddim")
    with pytest.raises(ValueError, match="only one image at a time can branch off, got 3"):
        branch_off(policy, settings, policy.init_state(settings), 8)


def test_endings_are_grouped_by_their_distances():
    shades = torch.tensor([0.0, 0.5, 0.06, 0.12, 0.52, 0.9])  # 0, 0.06 and 0.12 form a chain
    images = shades[:, None, None, None].expand(-1, 3, 4, 4)
    between = distances(images)
    torch.testing.assert_close(between, (shades[:, None] - shades).abs().double())
    assert group(between) == [0, 1, 0, 0, 1, 2]
    assert group(between, below=0.05) == [0, 1, 2, 3, 1, 4] and set(group(between, below=1.0)) == {0}
    assert group(torch.zeros(8, 8)) == [0] * 8
