"""dp.networks.rin: shapes, gradients, zeros for absent inputs, and independence of the rows of a batch."""

import json
import re

import pytest
import torch
from torch import Tensor

from dp import DiffusionPolicy
from dp.networks.blocks import attend
from dp.networks.rin import NETWORKS, RIN, embed_time

B, M, L = 3, 5, 12  # rows, and the latents of `tiny_rin`
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 sums of some hundred terms of order 1, in another order for another batch


@pytest.fixture
def rin(tiny_rin, conv_widths):
    return tiny_rin(conv_widths=conv_widths)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(rin: RIN, b: int = B) -> dict[str, Tensor]:
    image = (b, rin.channels, rin.image_size, rin.image_size)
    return {
        "x": normal(*image, seed=1),
        "time": torch.linspace(0, 1, b),
        "x_self_cond": normal(*image, seed=2),
        "latents": normal(b, M, L, seed=3),
    }


@pytest.mark.parametrize("channels, image_size", [(1, 8), (3, 16)])
def test_shapes(tiny_rin, conv_widths, channels, image_size):
    rin = tiny_rin(conv_widths=conv_widths, channels=channels, image_size=image_size)
    given = inputs(rin)
    prediction, latents = rin(**given, return_latents=True)
    assert (rin.channels, rin.image_size) == (channels, image_size)
    assert prediction.shape == given["x"].shape and latents.shape == given["latents"].shape == (B, M, L)
    assert torch.isfinite(prediction).all() and prediction.std() > 0.1


def test_the_rest_of_the_patch_is_folded_into_channels(tiny_rin):
    rin = tiny_rin(image_size=16, patch_size=8, conv_widths=(4, 6), conv_blocks=2)
    assert rin.interface.fold == 2 and rin.positions.shape == (4, 8)
    assert rin(**inputs(rin)).shape == (B, 3, 16, 16)


def test_only_the_requested_extras_are_returned(rin):
    given = inputs(rin)
    plain = rin(**given)
    with_latents, latents = rin(**given, return_latents=True)
    with_attention, attention = rin(**given, return_attention=True)
    with_both, both_latents, both_attention = rin(**given, return_latents=True, return_attention=True)
    assert all(torch.equal(plain, other) for other in (with_latents, with_attention, with_both))
    assert torch.equal(latents, both_latents) and all(map(torch.equal, attention, both_attention))


def test_each_latents_read_attention_sums_to_one(rin):
    _, attention = rin(**inputs(rin), return_attention=True)
    assert len(attention) == 2  # one for each block
    for weights in attention:
        assert weights.shape == (B, 2, M, (8 // 4) ** 2)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(B, 2, M))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_is_the_papers_formula_in_every_dtype(dtype):
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_().unbind()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = attend(q, k, v)
    q64, k64, v64 = (x.double() for x in (q, k, v))
    expected = (q64 @ k64.transpose(-1, -2) / 8**0.5).softmax(dim=-1) @ v64
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_the_read_attention_is_the_one_that_is_used(tiny_rin):
    # Weights times values, through the output layer, is what the block's fused attention gives.
    attend = tiny_rin().blocks[0].read
    x, context = normal(B, M, L), normal(B, 4, 8, seed=1)
    values = attend.to_kv(context).chunk(2, dim=-1)[1].unflatten(-1, (2, 3)).transpose(1, 2)
    by_hand = attend.to_out((attend.weights(x, context) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attend(x, context), by_hand, **CLOSE)


def test_gradients_reach_every_element_of_every_parameter(tiny_rin, conv_widths):
    # Two channels in each group: a bias before the norm of a single channel changes nothing.
    rin = tiny_rin(dim=16, conv_widths=conv_widths and (16,))
    rin(**inputs(rin)).square().sum().backward()
    without = [name for name, p in rin.named_parameters() if p.grad is None or not p.grad.all()]
    assert not without


def test_the_carried_path_stays_in_the_graph_when_nothing_is_carried(rin):
    # Distributed training waits for the gradient of every parameter; the one of the carried path is zero, but there.
    given = inputs(rin) | {"latents": None}
    rin(**given).sum().backward()
    assert rin.carried.weight.grad is not None and not rin.carried.weight.grad.any()


@pytest.mark.parametrize("key", ["x_self_cond", "latents"])
def test_zeros_mean_none(rin, key):
    given = inputs(rin)
    none, zeros = (rin(**given | {key: value}, return_latents=True) for value in (None, torch.zeros_like(given[key])))
    assert all(map(torch.equal, none, zeros))


@pytest.mark.parametrize("key", ["x", "time", "x_self_cond", "latents"])
def test_every_input_affects_the_output(rin, key):
    given = inputs(rin)
    other = given | {key: given[key].flip(0)}
    assert (rin(**given) - rin(**other))[[0, -1]].abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_without_latents_the_network_starts_from_its_learned_ones(rin):
    seen = []
    rin.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    rin(**inputs(rin) | {"latents": None})
    assert torch.equal(seen[0], rin.latents.expand(B, M, L))


def test_a_new_network_ignores_carried_latents(conv_widths):
    rin = RIN(dim=8, image_size=8, patch_size=4, num_latents=M, dim_latent=L, depth=1, heads=2, conv_widths=conv_widths)
    given = inputs(rin)
    with_carry, without = (rin(**given | {"latents": z}, return_latents=True)[1] for z in (given["latents"], None))
    assert torch.equal(with_carry, without)


def test_rows_with_and_without_carried_latents_are_independent(rin):
    given = inputs(rin)
    given["latents"][1] = 0
    given["x_self_cond"][1] = 0
    together = rin(**given, return_latents=True)
    for i in range(B):
        alone = rin(**{key: value[i : i + 1] for key, value in given.items()}, return_latents=True)
        for mine, ours in zip(alone, together, strict=True):
            torch.testing.assert_close(mine, ours[i : i + 1], **CLOSE)
    first = rin(given["x"][1:2], given["time"][1:2], return_latents=True)
    torch.testing.assert_close(first[0], together[0][1:2], **CLOSE)


def test_a_row_is_independent_of_its_neighbors(rin):
    given = {key: value.requires_grad_() for key, value in inputs(rin).items()}
    rin(**given)[0].sum().backward()
    for key, value in given.items():
        assert value.grad[0].any() and not value.grad[1:].any(), key


@pytest.mark.parametrize("dim", [2, 16])
def test_the_time_embedding_distinguishes_all_times(dim):
    embedding = embed_time(torch.linspace(0, 1, 1001, dtype=torch.float64), dim)
    assert embedding.shape == (1001, dim) and embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.square().sum(dim=-1), torch.full((1001,), dim / 2))
    assert len(embedding.unique(dim=0)) == 1001


def test_the_config_rebuilds_the_network(rin):
    again = NETWORKS["rin"](**rin.config)
    again.load_state_dict(rin.state_dict())
    given = inputs(rin)
    assert again.config == rin.config and torch.equal(again(**given), rin(**given))


def test_the_latents_are_as_wide_as_the_tokens_by_default():
    assert RIN(dim=8, image_size=8, patch_size=4, num_latents=2, depth=1).latents.shape == (2, 8)


@pytest.mark.parametrize(
    "sizes, named",
    [
        ({"image_size": 10}, "10 and 4"),
        ({"image_size": 8, "patch_size": 16}, "8 and 16"),
        ({"conv_widths": (4, 4, 4)}, "multiple of 8"),
        ({"image_size": 12, "patch_size": 6, "conv_widths": (4, 4)}, "multiple of 4"),
        ({"patch_size": 0}, "0"),
    ],
    ids=str,
)
def test_incompatible_sizes_are_rejected_with_their_values(tiny_rin, sizes, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        tiny_rin(**sizes)


# ----------------------------------------------------------------------------
# Classes, and the fields that came later


def test_each_class_has_its_own_prediction_and_none_is_zero(tiny_rin, conv_widths):
    rin = tiny_rin(conv_widths=conv_widths, num_classes=3)
    given = {key: value[:1].expand(4, *value.shape[1:]) for key, value in inputs(rin).items()}
    rows = rin(**given, condition=torch.arange(4))
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))
    for label in range(4):
        alone = rin(**{key: value[:1] for key, value in given.items()}, condition=torch.tensor([label]))
        torch.testing.assert_close(rows[label : label + 1], alone, **CLOSE)
    assert torch.equal(rin(**given), rin(**given, condition=torch.zeros(4, dtype=torch.int64)))
    with torch.no_grad():
        rin.classes.weight.normal_()
    torch.testing.assert_close(rin(**given)[0], rows[0], **CLOSE)  # no class reads none of the weights


def test_gradients_reach_every_class(tiny_rin):
    rin = tiny_rin(num_classes=3, qk_norm=True)
    rin(**inputs(rin), condition=torch.tensor([1, 2, 3])).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in rin.parameters())
    rin.zero_grad()
    rin(**inputs(rin)).square().sum().backward()
    assert rin.classes.weight.grad is not None and not rin.classes.weight.grad.any()  # in the graph, without effect


def test_normalized_queries_and_keys_bound_the_attention(tiny_rin):
    """Without the norm the weights saturate as the projections grow, and with it they do not change at all."""
    plain, normed = tiny_rin(), tiny_rin(qk_norm=True)
    for rin in (plain, normed):
        given = inputs(rin)
        *_, before = rin(**given, return_attention=True)
        with torch.no_grad():
            for block in rin.blocks:
                block.read.to_q.weight *= 100
        *_, after = rin(**given, return_attention=True)
        if rin is normed:
            torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=0)
        else:
            assert after[0].amax(-1).mean() > 0.95 > before[0].amax(-1).mean()


def test_the_read_attention_is_the_one_that_is_used_with_the_norm(tiny_rin):
    attention = tiny_rin(qk_norm=True).blocks[0].read
    x, context = normal(2, 5, 12), normal(2, 4, 8, seed=1)
    values = attention.to_kv(context).chunk(2, dim=-1)[1].unflatten(-1, (2, 3)).transpose(1, 2)
    mixed = (attention.weights(x, context) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, context), attention.to_out(mixed), **CLOSE)


def test_query_embeddings_keep_equal_latents_apart(tiny_rin):
    for query_std in (0.0, 3.0):
        rin = tiny_rin(qk_norm=True, query_std=query_std)
        with torch.no_grad():
            rin.latents[:] = rin.latents[0]
        *_, blocks = rin(**inputs(rin) | {"latents": None}, return_attention=True)
        for weights in blocks:
            difference = (weights - weights[:, :, :1]).abs().amax()
            assert difference > 1e-3 if query_std else difference < 1e-6


def test_the_initial_latents_have_the_chosen_deviation():
    sizes = {"dim": 8, "image_size": 8, "patch_size": 4, "depth": 1, "num_latents": 500}
    for options, expected in (({}, 0.02), ({"latent_std": 1.0}, 1)):
        assert RIN(**sizes, **options).latents.std().item() == pytest.approx(expected, rel=0.1)


def test_a_config_without_the_later_fields_is_the_network_of_before(tiny_rin, tmp_path):
    DiffusionPolicy(tiny_rin(), timesteps=3).save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    expected = DiffusionPolicy.from_pretrained(tmp_path).sample(2, seed=0)
    for name in ("num_classes", "qk_norm", "latent_std", "query_std"):
        del whole["network"][name]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert torch.equal(DiffusionPolicy.from_pretrained(tmp_path).sample(2, seed=0), expected)


def test_a_network_with_classes_comes_back_whole(tiny_rin, tmp_path):
    network = tiny_rin(num_classes=5, qk_norm=True, latent_std=1.0, query_std=3.0)
    policy = DiffusionPolicy(network, timesteps=3, condition_drop_prob=0.2, uniform_loss_weight=True)
    policy.save_pretrained(tmp_path)
    loaded = DiffusionPolicy.from_pretrained(tmp_path)
    assert loaded.num_classes == 5 and loaded.model.config == network.config and loaded.config == policy.config
    run = {"label": (5, 2), "guidance": 2, "seed": 0}
    assert torch.equal(loaded.sample(2, **run), policy.sample(2, **run))
