"""dp.networks.rin.SequenceRIN: sequences, and the observation tokens that its latents read beside them."""

from __future__ import annotations

import re

import pytest
import torch
from models import randomize

from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.networks.attention import read_attention
from dp.networks.rin import NETWORKS, SequenceRIN

SIZES = {"dim": 16, "length": 16, "channels": 2, "depth": 2, "latent_self_attn_depth": 1, "dim_latent": 12}
SIZES |= {"num_latents": 5, "heads": 2, "dim_head": 3, "conv_widths": (16, 16), "conv_blocks": 1}
SIZES |= {"num_observations": 3, "observation_features": 4}
CLOSE = {"rtol": 0, "atol": 1e-5}


def inputs(count: int = 3) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, count, 2, 16, generator=random)
    condition = torch.randn(count, 3, 4, generator=random)
    condition[..., 0] = 1
    condition[:, 2] = 0  # an absent token
    latents = torch.randn(count, 5, 12, generator=random)
    times = torch.linspace(0, 1, count)
    return {"x": x, "time": times, "x_self_cond": x0, "latents": latents, "condition": condition}


@pytest.fixture
def network() -> SequenceRIN:
    return randomize(SequenceRIN(**SIZES))


def test_shapes(network):
    prediction, latents, attention = network(**inputs(), return_latents=True, return_attention=True)
    assert prediction.shape == (3, 2, 16) and latents.shape == (3, 5, 12)
    assert [weights.shape for weights in attention] == [(3, 2, 5, 4 + 3)] * 2
    assert (network.kind, network.sample_shape, network.observation_shape) == ("sequence", (2, 16), (3, 4))


def test_rows_are_independent(network):
    given = inputs()
    given["condition"][1] = 0
    together = network(**given)
    for i in range(3):
        alone = network(**{name: value[i : i + 1] for name, value in given.items()})
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


@pytest.mark.parametrize("name", ["x_self_cond", "latents", "condition"])
def test_zeros_mean_none(network, name):
    given = inputs()
    assert torch.equal(network(**given | {name: torch.zeros_like(given[name])}), network(**given | {name: None}))
    assert not torch.allclose(network(**given), network(**given | {name: None}), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absent_tokens_are_not_read(network, dtype):
    """They change nothing, wherever they stand, and present ones have no order."""
    given = inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        *_, attention = network(**given, return_attention=True)
        for weights in attention:
            assert not weights[..., 6].any() and (weights[..., 4:6] > 0).all()
            torch.testing.assert_close(weights.sum(dim=-1).float(), torch.ones(3, 2, 5), rtol=0, atol=0.02)
        expected = network(**given)
        moved = network(**given | {"condition": given["condition"][:, [2, 1, 0]]})
    torch.testing.assert_close(moved.float(), expected.float(), rtol=0, atol=1e-5 if dtype == torch.float32 else 0.5)


def test_the_attention_that_is_shown_is_the_one_that_is_used(network):
    read, given = network.blocks[0].read, inputs()
    x, context = given["latents"], torch.randn(3, 7, 16)
    mask = torch.tensor([True] * 5 + [False] * 2).expand(3, 1, 1, 7)
    values = read.to_kv(context).chunk(2, dim=-1)[1].unflatten(-1, (2, 3)).transpose(1, 2)
    by_hand = read.to_out((read.weights(x, context, mask) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(read(x, context, mask=mask), by_hand, **CLOSE)


def test_look_inside_shows_sequences_too(network):
    policy = DiffusionPolicy(network, timesteps=2)
    state = policy.init_state(SampleSettings(3, observation=inputs()["condition"], seed=0))
    assert read_attention(policy, state).shape == (3, 2, 5, 7)


def test_gradients_reach_every_parameter(network):
    network(**inputs()).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    network.zero_grad()
    network(**inputs() | {"condition": None}).square().sum().backward()
    grads = [p.grad for p in network.observed.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)  # in the graph, as distributed training requires


def test_the_config_rebuilds_the_network(network):
    again = NETWORKS["sequence_rin"](**network.config)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(**inputs()), network(**inputs()))


def test_a_network_without_observations():
    network = SequenceRIN(**SIZES | {"num_observations": 0, "observation_features": 0})
    assert network.observation_shape is None
    assert network(torch.rand(2, 2, 16), torch.rand(2)).shape == (2, 2, 16)


@pytest.mark.parametrize(
    "sizes, named",
    [
        ({"length": 18}, "length must be a multiple of 4"),
        ({"length": 0}, "got 0"),
        ({"conv_widths": ()}, "at least one convolutional level"),
        ({"num_observations": 0}, "must both be 0, or neither; got 0 and 4"),
    ],
    ids=str,
)
def test_incompatible_sizes_are_rejected(sizes, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        SequenceRIN(**SIZES | sizes)
