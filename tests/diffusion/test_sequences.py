"""Sequences [B,C,L] with observations: the mathematics of images with one axis less, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian import GaussianDenoiser, reference_noise, reference_sample
from models import randomize
from torch import nn

from dp import RIN, DiffusionPolicy, ExactDenoiser, SampleSettings
from dp.diffusion.endings import branch_settings
from dp.diffusion.exact import effective_count
from dp.diffusion.parts import take_apart
from dp.networks.rin import SequenceRIN

SHAPE, OBSERVED = (2, 8), (3, 4)  # of a sequence, and of an observation
SIZES = {"dim": 8, "length": 8, "depth": 2, "latent_self_attn_depth": 1, "dim_latent": 12, "num_latents": 5}
SIZES |= {"heads": 2, "dim_head": 3, "conv_widths": (4,), "conv_blocks": 1}
SIZES |= {"num_observations": 3, "observation_features": 4}
CLOSE = {"rtol": 0, "atol": 1e-4}  # as the contract has it for float32 across the shapes of batches
TRAINED = ("sigmoid", {"start": -3.0, "end": 4.0, "tau": 0.9})


def observations(count: int) -> torch.Tensor:
    """Return observations of 2 tokens [count,3,4], different for each sample."""
    tokens = torch.rand(count, *OBSERVED, generator=torch.Generator().manual_seed(1))
    tokens[..., 0] = 1
    tokens[:, 2] = 0
    return tokens


@pytest.fixture
def policy():
    return DiffusionPolicy(randomize(SequenceRIN(**SIZES)), timesteps=5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("objective, scale", [("v", 1.0), ("eps", 0.8), ("x0", 1.0)])
def test_the_sampler_is_the_gaussian_recursion(sampler, objective, scale):
    network = GaussianDenoiser(0.3, 0.2, objective=objective, trained=TRAINED, scale=scale, shape=SHAPE)
    name, kwargs = TRAINED
    policy = DiffusionPolicy(network, objective=objective, scale=scale, noise_schedule=name, schedule_kwargs=kwargs)
    run = {"sampler": sampler, "timesteps": 7, "time_difference": 0.05}
    found = policy.double().sample(3, **run, noise_schedule="cosine", seed=4)
    expected = reference_sample(network, reference_noise(4, 3, *SHAPE), **run, schedule=("cosine", {}))
    np.testing.assert_allclose(found.numpy() * 2 - 1, expected, atol=1e-6)


class LineDenoiser(nn.Module):
    """The best network for one known sequence for each observation: what the first token's features say, or 0."""

    sample_shape, observation_shape = SHAPE, OBSERVED

    def forward(self, x, time, x_self_cond=None, latents=None, condition=None, return_latents=False):
        x0 = condition[:, 0, 1, None, None].to(x).expand_as(x) if condition is not None else torch.zeros_like(x)
        return x0, x.new_zeros(len(x), 0, 1)


@pytest.mark.parametrize("interval, weight", [((0.0, 1.0), 2.5), ((0.9, 1.0), 1.0)])
def test_guidance_goes_from_the_prediction_without_the_observation_to_the_one_with_it(interval, weight):
    policy = DiffusionPolicy(LineDenoiser(), objective="x0")
    observation = [[[1, value, 0, 0], [0] * 4, [0] * 4] for value in (0.2, -0.3)]
    found = policy.sample(2, observation=observation, timesteps=4, guidance=2.5, guidance_interval=interval, seed=0)
    for sequence, value in zip(found * 2 - 1, (0.2, -0.3), strict=True):
        torch.testing.assert_close(sequence, torch.full(SHAPE, weight * value))


def test_guided_rows_have_both_branches_and_those_without_an_observation_one(policy):
    tokens = observations(3)
    tokens[1] = 0
    state = policy.init_state(SampleSettings(3, observation=tokens, guidance=2.0, seed=0))
    assert len(state) == 3 and state.network_rows == 5 and [len(part) for part in state.split(2)] == [1, 1, 1]
    found = policy.sample(3, observation=tokens, guidance=2.0, seed=0)
    torch.testing.assert_close(found[1:2], policy.sample(1, seed=1), **CLOSE)
    for i in (0, 2):
        alone = policy.sample(1, observation=tokens[i], guidance=2.0, seed=i)
        torch.testing.assert_close(found[i : i + 1], alone, **CLOSE)
    assert (policy.sample(3, observation=tokens, seed=0) - found)[[0, 2]].abs().amax(dim=(1, 2)).min() > 1e-3
    assert torch.equal(policy.sample(3, observation=tokens, guidance=0, seed=0), policy.sample(3, seed=0))


def test_the_exact_denoiser_ends_at_one_of_its_sequences():
    sequences = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = ExactDenoiser(sequences)
    policy = DiffusionPolicy(exact, objective="x0").double()
    *_, last = policy.stream(4, timesteps=30, seed=0)
    found = (last.x0 + 1) / 2
    assert (found[:, None] - sequences).abs().amax(dim=(2, 3)).amin(dim=1).max() < 1e-6
    assert effective_count(exact.posterior(last.x_t, torch.zeros(4))).tolist() == pytest.approx([1] * 4)
    flat = sequences[0] * 2 - 1
    x_t, (alpha, sigma) = 0.6 * flat[None] + 0.8, (0.6, 0.8)
    time = policy.schedule.time(torch.tensor([alpha**2], dtype=torch.float64))
    weights = torch.softmax(-((x_t - alpha * (sequences * 2 - 1)) ** 2).sum(dim=(1, 2)) / (2 * sigma**2), dim=0)
    expected = (weights[:, None, None] * (sequences * 2 - 1)).sum(dim=0)
    torch.testing.assert_close(exact(x_t, time)[0], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="mirror image of a sequence"):
        ExactDenoiser(sequences, mirrored=True)


def test_a_sequence_is_the_same_alone_and_beside_other_requests(policy):
    tokens = observations(3)
    runs = [
        SampleSettings(2, observation=tokens[:2], timesteps=5, sampler="dpmpp_2m", guidance=1.5, seed=0),
        SampleSettings(1, observation=tokens[2], timesteps=3, sampler="ddpm", seed=7),
        SampleSettings(2, timesteps=4, sampler="dpmpp_2m_sde", seed=9),  # without an observation
    ]
    states, together = [policy.init_state(run) for run in runs], {}
    while going := [i for i, state in enumerate(states) if not state.is_finished]:
        for i, (state, step) in zip(going, policy.step([states[i] for i in going]), strict=True):
            states[i], together[i] = state, step.x0
    for i, run in enumerate(runs):
        *_, alone = policy.run(policy.init_state(run))
        torch.testing.assert_close(together[i], alone.x0, **CLOSE)


def test_a_parked_run_and_a_repeated_step_go_on_as_before(policy):
    settings = SampleSettings(2, observation=observations(2), timesteps=5, sampler="ddpm", guidance=2.0, seed=3)
    *_, expected = policy.run(policy.init_state(settings))
    state = policy.init_state(settings)
    for _ in range(2):
        [(state, _)] = policy.step([state])
    kept = state.cloned()
    policy.step([state])  # fails after it has drawn its noise, say
    *_, found = policy.run(kept.with_noise_rewound())
    assert torch.equal(found.x0, expected.x0)


def test_every_step_is_its_row_of_the_table(policy):
    state = policy.init_state(SampleSettings(2, observation=observations(2), sampler="dpmpp_2m_sde", seed=0))
    plan = state.plan
    a, b, _, d = plan.table.T
    torch.testing.assert_close(a * plan.t.alpha + b, plan.s.alpha)
    torch.testing.assert_close((a * plan.t.sigma) ** 2 + d**2, plan.s.sigma**2)
    while not state.is_finished:
        parts = take_apart(policy, state)
        a, b, c, d = parts.coefficients
        [(state, step)] = policy.step([state])
        torch.testing.assert_close(step.x0, parts.x0)
        by_hand = a * parts.x_t + b * parts.x0 + c * parts.change + d * parts.fresh
        torch.testing.assert_close(state.x_t, by_hand)


def test_known_places_are_kept_and_a_run_can_start_from_a_sequence(policy):
    start, keep = torch.rand(*SHAPE), torch.zeros(8, dtype=torch.bool)
    keep[[0, -1]] = True  # both ends
    found = policy.sample(2, start=start, mask=keep, strength=0.5, seed=0)
    torch.testing.assert_close(found[:, :, keep], start[:, keep].expand(2, -1, -1))
    assert torch.equal(found, policy.sample(2, start=start, mask=keep[None], strength=0.5, seed=0))
    settings = {"strength": 0.25, "seed": 0}
    x_t = policy.init_state(SampleSettings(1, **settings), start).x_t
    at = policy.init_state(SampleSettings(1, **settings), start).plan.t.at(0)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x_t[0], at.alpha.float() * (start * 2 - 1) + at.sigma.float() * noise)


@pytest.mark.parametrize("objective", ["v", "eps", "x0"])
def test_the_loss_is_that_of_the_same_numbers_as_an_image(objective):
    """Predictions of 0: the loss is then the mean square of the target, whatever the shape."""

    class Zero(nn.Module):
        def __init__(self, sample_shape):
            super().__init__()
            self.sample_shape = sample_shape

        def forward(self, x, time, x_self_cond=None, latents=None, return_latents=False):
            return torch.zeros_like(x), x.new_zeros(len(x), 0, 1)

    samples, noise, t = torch.rand(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    given = {"t": t, "self_condition": False, "per_image": True}
    image, sequence = (
        DiffusionPolicy(Zero(shape), objective=objective, scale=0.7)(
            samples.view(3, *shape), noise=noise.view(3, *shape), **given
        )[0]
        for shape in ((4, 4, 4), (4, 16))
    )
    torch.testing.assert_close(image, sequence)


def test_a_dropped_observation_is_none_row_by_row(policy):
    given = {"t": torch.tensor([0.2, 0.5, 0.8]), "noise": torch.randn(3, *SHAPE), "self_condition": True}
    paths, tokens = torch.rand(3, *SHAPE), observations(3)

    def losses(condition, drop=(False,) * 3):
        return policy(paths, condition, **given, drop=torch.tensor(drop), per_image=True)[0]

    kept, none = losses(tokens), losses(None)
    assert not torch.isclose(kept, none).any()
    torch.testing.assert_close(losses(tokens, (False, True, False)), torch.where(torch.arange(3) == 1, none, kept))


@pytest.mark.parametrize(
    "observation, words",
    [
        (3, "observation must be numbers"),
        ([["a"]], "observation must be numbers"),
        (torch.zeros(3, *OBSERVED), r"\[2,O,F\] for 2 samples, got shape \(3, 3, 4\)"),
        (torch.full(OBSERVED, torch.nan), "a token of an observation must be finite"),
        (torch.full(OBSERVED, 0.5), "of which the first is 1"),
        (torch.tensor([[0.0, 1, 0, 0]] * 3), "or all zeros for no token"),
        (torch.zeros(2, 4), r"observation must be \(3, 4\), got \(2, 4\)"),
    ],
    ids=str,
)
def test_a_bad_observation_is_refused(policy, observation, words):
    with pytest.raises(ValueError, match=words):
        policy.sample(2, observation=observation)


def test_bad_conditions_and_shapes_are_refused(policy, tiny_rin):
    paths = torch.rand(2, *SHAPE)
    with pytest.raises(ValueError, match=r"condition must be floats of shape \(2, 3, 4\)"):
        policy(paths, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="a token of an observation"):
        policy(paths, torch.full((2, *OBSERVED), 2.0))
    with pytest.raises(ValueError, match=r"images must be \(batch, 2, 8\), got \(2, 2, 9\)"):
        policy(torch.rand(2, 2, 9))
    with pytest.raises(ValueError, match="guidance = 2 needs a label"):
        policy.sample(1, observation=torch.zeros(OBSERVED), guidance=2)
    with pytest.raises(ValueError, match="takes no observation"):
        DiffusionPolicy(tiny_rin()).sample(1, observation=observations(1))
    with pytest.raises(ValueError, match="this model has no classes"):
        policy.sample(1, label=1)
    with pytest.raises(ValueError, match="no image_size"):
        policy.image_size  # noqa: B018


def test_settings_keep_an_observation_as_numbers_and_a_branch_takes_its_own():
    tokens = observations(2)
    settings = SampleSettings(2, observation=tokens, guidance=2.0)
    assert torch.equal(torch.tensor(settings.observation), tokens)
    assert settings == SampleSettings(2, observation=tokens.numpy(), guidance=2.0)
    branch = branch_settings(settings, 1, 4)
    assert torch.equal(torch.tensor(branch.observation), tokens[1]) and branch.guidance == 2.0
    none = branch_settings(SampleSettings(2, observation=tokens * torch.tensor([1, 0])[:, None, None]), 1, 4)
    assert none.guidance == 1.0


def test_images_keep_their_kind():
    network = RIN(dim=8, image_size=8, patch_size=4, depth=1, num_latents=2)
    assert (network.kind, network.sample_shape, network.observation_shape) == ("image", (3, 8, 8), None)
    assert DiffusionPolicy(network).image_size == 8
