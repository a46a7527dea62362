"""Look inside: the read attention of a run that the engine still has. test_player shows it on the page."""

import pytest
import torch
from torch import nn

from dp import DiffusionPolicy, SampleSettings
from dp.diffusion.replay import replay, state_at_step
from dp.networks.attention import read_attention, total_variation
from dp.serving.engine import Engine


def reading_one_patch(network: nn.Module, patch: int) -> nn.Module:
    """Return the network changed so that every latent attends to `patch`, the only token with a matching key."""
    with torch.no_grad():
        network.positions.zero_()
        network.positions[patch, 0] = 1e4  # after the layer norm every other feature is negligible
        for block in network.blocks:
            block.norms.project.weight.zero_(), block.norms.project.bias.zero_()
            block.write.to_out.weight.zero_(), block.write.to_out.bias.zero_()
            block.write_mlp[2].weight.zero_(), block.write_mlp[2].bias.zero_()
            keys = len(block.read.to_kv.weight) // 2
            block.read.to_kv.weight[:keys].zero_()
            block.read.to_kv.weight[:keys, 0] = 10.0
            block.read.to_q.weight.zero_()
            block.read.to_q.weight[:, 0] = 10.0
            network.latents[:, 0] = 1e4
            for layer in (block.read.to_out, block.read_mlp[2], *(f[2] for _, f in block.compute)):
                layer.weight.zero_(), layer.bias.zero_()
            for attend, _ in block.compute:
                attend.to_out.weight.zero_(), attend.to_out.bias.zero_()
    return network


def read_step(policy, settings, row, index, start=None):
    """Return the read attention of one image in one step, [depth,M,N]."""
    return read_attention(policy, state_at_step(policy, settings, row, index, start, None))[0]


def test_a_row_of_attention_sums_to_1_for_every_latent_of_every_block(tiny_rin, conv_widths):
    policy = DiffusionPolicy(tiny_rin(conv_widths=conv_widths))
    weights = read_attention(policy, policy.init_state(SampleSettings(3, timesteps=4, seed=0)))
    assert weights.shape == (3, 2, 5, 4)  # 2 blocks, 5 latents, 2 x 2 patches
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    assert weights.min() >= 0 and weights.std(dim=-1).max() > 1e-3  # not uniform


@pytest.mark.parametrize("patch", [0, 2, 3])
def test_a_network_that_reads_one_patch_shows_that_patch(tiny_rin, patch):
    policy = DiffusionPolicy(reading_one_patch(tiny_rin(), patch))
    weights = read_step(policy, SampleSettings(2, timesteps=5, seed=1), row=1, index=3)
    assert (weights.argmax(dim=-1) == patch).all() and weights[..., patch].min() > 0.99


def test_the_attention_is_that_of_the_call_that_made_the_step(tiny_rin):
    """For image 2 of a batch, at step 4: the same as that of the network with the run's own inputs."""
    policy = DiffusionPolicy(tiny_rin())
    settings = SampleSettings(4, timesteps=6, sampler="ddpm", seed=5)
    rows = replay(policy, policy.init_state(settings), 4)
    step = list(policy.stream(4, timesteps=6, sampler="ddpm", seed=5))[3]
    torch.testing.assert_close(rows.x_t, step.x_t)
    time = torch.full((4,), step.time)
    *_, blocks = policy.model(rows.x_t, time, rows.carry["x0"], rows.carry["latents"], return_attention=True)
    expected = torch.stack([weights.mean(dim=1) for weights in blocks], dim=1)[2]
    found = read_step(policy, settings, row=2, index=4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(found, read_step(policy, settings, row=2, index=3), atol=1e-4)


@pytest.fixture
def engine(tiny_rin, tmp_path):
    DiffusionPolicy(tiny_rin()).save_pretrained(tmp_path / "tiny")
    return Engine(tmp_path, device="cpu")


def test_the_engine_returns_the_attention_of_a_run(engine, tiny_rin):
    start = torch.rand(3, 8, 8)
    settings = SampleSettings(3, timesteps=5, sampler="ddim", seed=2, walk_to=8, strength=0.5)
    handle = engine.submit(settings, "tiny", start=start)
    list(handle)
    expected = read_step(DiffusionPolicy(tiny_rin()), settings, 1, 4, start)
    torch.testing.assert_close(engine.attention(handle.request_id, 1, 4), expected, atol=1e-4, rtol=0)
    for row, index, message in ((3, 1, "in 0 to 2.*got 3"), (0, 0, "in 1 to 5.*got 0"), (0, 6, "in 1 to 5.*got 6")):
        with pytest.raises(ValueError, match=message):
            engine.attention(handle.request_id, row, index)
    with pytest.raises(ValueError, match="no longer has this run"):
        engine.attention("unknown", 0, 1)


def test_a_run_without_a_seed_gets_one_and_has_attention_maps(engine):
    handle = engine.submit(SampleSettings(1, timesteps=2), "tiny")
    list(handle)
    assert isinstance(handle.provenance["seed"], int)
    assert engine.attention(handle.request_id, 0, 2).shape == (2, 5, 4)


def test_a_replaced_checkpoint_is_an_error(engine, tiny_rin, tmp_path):
    handle = engine.submit(SampleSettings(1, timesteps=2), "tiny")
    list(handle)
    DiffusionPolicy(tiny_rin(num_latents=6)).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="tiny has been replaced since this run"):
        engine.attention(handle.request_id, 0, 1)


def test_a_network_without_latents_is_a_clear_error():
    class Plain(nn.Module):
        channels, image_size = 3, 8

        def forward(self, x, time, x_self_cond=None, latents=None, return_latents=False):
            return (x, x.new_zeros(len(x), 0, 4)) if return_latents else x

    with pytest.raises(ValueError, match="it has no latents"):
        read_step(DiffusionPolicy(Plain()), SampleSettings(1, timesteps=2, seed=0), 0, 1)


def test_total_variation_is_0_between_equal_maps_and_1_between_disjoint_ones():
    one, other = torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0, 0, 0.25, 0.75])
    assert total_variation(torch.stack([one, one])[None]) == 0
    assert total_variation(torch.stack([one, other])[None]) == pytest.approx(1)
    assert total_variation(torch.stack([one, one, other])[None]) == pytest.approx(2 / 3)
    assert total_variation(one[None, None]) == 0  # of a single map
