"""RIN, the Recurrent Interface Network. Jabri, Fleet & Chen 2022, arXiv 2212.11972.

The network encodes an image, or a sequence, as many interface tokens. In each of `depth` blocks, a smaller set of
latent tokens reads from the interface by cross-attention, processes the result by self-attention, and writes it back by
cross-attention. Most of the computation therefore runs on the latents. The latents of one call initialize those of the
next.

The blocks support three interfaces (`dp.networks.interfaces`). With `conv_widths=()`, as in the paper, square patches
of an image are embedded linearly. With widths, pixel unshuffle folds the image into channels and a small U-shaped
convolutional encoder and decoder surrounds the RIN blocks, which run at its coarsest level; small images and small
datasets train much faster this way. Sequences have the same in one dimension.

Letters: B samples, C channels, H W pixels, S the length of a sequence, N interface tokens of width D (`dim`), M latents
of width L (`dim_latent`), T width of the time embedding, O observation tokens of F features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.networks.blocks import RINBlock, normal_noise
from dp.networks.interfaces import ConvInterface, PatchInterface, SequenceInterface
from dp.system.validation import quote


class LatentNetwork(nn.Module):
    """The common part of the networks: the latents, and all that is not the interface. A subclass sets these attributes
    and `config`, and adds its modules in the order in which they compute: `_add_time`, its own, `_add_latents`.
    """

    kind: str  # of the samples: 'image' or 'sequence'
    sample_shape: tuple[int, ...]  # of one sample: (C, H, W) or (C, S)
    num_classes: int
    observation_shape: tuple[int, int] | None  # (O, F)
    classes: nn.Module | None
    observed: nn.Module | None

    def _add_time(self, dim: int) -> None:
        self.dim_time = 2 * dim
        self.time = nn.Sequential(
            nn.Linear(2 * dim, self.dim_time), nn.SiLU(), nn.Linear(self.dim_time, self.dim_time), nn.SiLU()
        )

    def _add_latents(self, num_tokens: int) -> None:
        of = self.config
        dim, dim_latent, num_latents = of["dim"], of["dim_latent"], of["num_latents"]
        self.positions = nn.Parameter(normal_noise(num_tokens, dim, std=0.02))
        self.latents = nn.Parameter(normal_noise(num_latents, dim_latent, std=of["latent_std"]))
        # The path of the carried latents has no bias, so that zeros give exactly the learned initial latents.
        self.carried = nn.Linear(dim_latent, dim_latent, bias=False)
        nn.init.zeros_(self.carried.weight)
        per_head = (of["heads"], of["dim_head"], of["qk_norm"])
        sizes = (dim, dim_latent, self.dim_time, of["latent_self_attn_depth"], per_head)
        self.blocks = nn.ModuleList(RINBlock(*sizes, (num_latents, of["query_std"])) for _ in range(of["depth"]))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        x_self_cond: Tensor | None = None,
        latents: Tensor | None = None,
        condition: Tensor | None = None,
        return_latents: bool = False,
        return_attention: bool = False,
    ):
        """Return the prediction for x, [B,C,H,W] or [B,C,S], at time [B] in [0, 1], given x_self_cond like x, latents
        [B,M,L] and, for a network with classes, condition [B], int64 from 0 to `num_classes`; for one with observations
        condition [B,O,F], in which feature 0 of a present token is 1. Zeros mean none.

        With `return_latents` or `return_attention`, return a tuple that also contains the latents [B,M,L] or each
        block's read attention [B,heads,M,N], or [B,heads,M,N+O] with observations.
        """
        if x_self_cond is None:
            x_self_cond = torch.zeros_like(x)
        if latents is None:  # zeros keep `carried` in the graph, as distributed training requires
            latents = x.new_zeros(len(x), *self.latents.shape)
        time = self._embed(time, condition)  # [B,T]

        tokens, skips = self.interface.encode(torch.cat([x, x_self_cond], dim=1), time)  # [B,N,D]
        tokens = tokens + self.positions
        latents = self.latents + self.carried(F.layer_norm(latents, latents.shape[-1:]))  # [B,M,L]

        observed = self._observe(tokens, condition)
        attention: list[Tensor] | None = [] if return_attention else None
        for block in self.blocks:
            tokens, latents = block(tokens, latents, time, attention, observed)
        prediction = self.interface.decode(tokens, skips, time)
        extras = ([latents] if return_latents else []) + ([attention] if return_attention else [])
        return (prediction, *extras) if extras else prediction

    def _embed(self, time: Tensor, condition: Tensor | None) -> Tensor:
        """Return the embedding [B,T] of times [B] and, for a network with classes, of the classes [B]."""
        *layers, activation = self.time
        x = embed_time(time, 2 * self.config["dim"]).to(self.positions.dtype)
        for layer in layers:
            x = layer(x)
        if self.classes is not None:  # zeros keep it in the graph, as distributed training requires
            condition = torch.zeros(len(x), dtype=torch.int64) if condition is None else condition
            one_hot = F.one_hot(condition.to(x.device), self.num_classes + 1)[:, 1:]
            x = x + self.classes(one_hot.to(x.dtype))
        return activation(x)

    def _observe(self, tokens: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return the observation tokens [B,O,D], and which of interface and observation tokens can be read,
        [B,1,1,N+O]; None for a network without observations.
        """
        if self.observed is None:
            return None
        if condition is None:
            condition = tokens.new_zeros(len(tokens), *self.observation_shape)
        condition = condition.to(tokens)
        is_present = F.pad(condition[..., 0] != 0, (tokens.shape[1], 0), value=True)
        return self.observed(condition), is_present[:, None, None]


class RIN(LatentNetwork):
    """The network of `DiffusionPolicy` for images.

    dim: width of the interface tokens. image_size: side of the image in pixels, a multiple of patch_size. patch_size:
    side in pixels of the square that one token represents. depth: number of RIN blocks, each with
    `latent_self_attn_depth` self-attention layers. dim_latent: width of the latents, `dim` by default. conv_widths:
    widths of the convolutional levels, finest first, with `conv_blocks` residual blocks each; empty for patches. Each
    level halves the resolution, so patch_size must be a multiple of 2**len(conv_widths); the remaining factor is folded
    into channels. num_classes: number of classes, which count from 1; 0 for an unconditional network. qk_norm: see
    `Attention`. latent_std: standard deviation of the initial latents. With little of it they drown in the carried
    ones, and all latents come to read the same patches. query_std: that of a learned embedding which is added to the
    query of each latent in every read, 0 for none; a large one keeps the latents distinct whatever they hold.
    """

    kind = "image"

    def __init__(
        self,
        dim: int,
        image_size: int,
        patch_size: int = 16,
        channels: int = 3,
        depth: int = 6,
        latent_self_attn_depth: int = 2,
        dim_latent: int | None = None,
        num_latents: int = 256,
        heads: int = 8,
        dim_head: int = 64,
        conv_widths: tuple[int, ...] = (),
        conv_blocks: int = 2,
        num_classes: int = 0,
        qk_norm: bool = False,
        latent_std: float = 0.02,
        query_std: float = 0.0,
    ):
        super().__init__()
        dim_latent = dim if dim_latent is None else dim_latent
        fold, odd = divmod(patch_size, 2 ** len(conv_widths))
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {quote(image_size)} and {quote(patch_size)}"
            )
        if odd or not fold:
            raise ValueError(
                f"patch_size must be a multiple of {2 ** len(conv_widths)}, because each of the {len(conv_widths)} "
                f"convolutional levels halves the resolution; got {patch_size}"
            )
        self.config = {
            "dim": dim,
            "image_size": image_size,
            "patch_size": patch_size,
            "channels": channels,
            "depth": depth,
            "latent_self_attn_depth": latent_self_attn_depth,
            "dim_latent": dim_latent,
            "num_latents": num_latents,
            "heads": heads,
            "dim_head": dim_head,
            "conv_widths": list(conv_widths),
            "conv_blocks": conv_blocks,
            "num_classes": num_classes,
        } | {"qk_norm": qk_norm, "latent_std": latent_std, "query_std": query_std}
        self.channels, self.image_size, self.sample_shape = channels, image_size, (channels, image_size, image_size)
        self.num_classes, self.observation_shape, self.observed = num_classes, None, None
        self._add_time(dim)
        # Without a bias, so that no class adds nothing.
        self.classes = nn.Linear(num_classes, self.dim_time, bias=False) if num_classes else None
        if conv_widths:
            self.interface = ConvInterface(
                2 * channels, channels, dim, fold, tuple(conv_widths), conv_blocks, self.dim_time
            )
        else:
            self.interface = PatchInterface(2 * channels, channels, dim, patch_size)
        self._add_latents((image_size // patch_size) ** 2)


class SequenceRIN(LatentNetwork):
    """The network of `DiffusionPolicy` for sequences, which may be given an observation.

    length: of a sequence, a multiple of 2**len(conv_widths). channels: numbers at each place of it. conv_widths: widths
    of the levels of strided convolutions, finest first, at least one; the tokens are as many as the places at the
    coarsest. num_observations, observation_features: an observation has at most that many tokens, of that many
    features. The latents read them beside the sequence; their order has no meaning. 0 for none. The others are as in
    `RIN`.
    """

    kind = "sequence"

    def __init__(
        self,
        dim: int,
        length: int,
        channels: int = 2,
        depth: int = 2,
        latent_self_attn_depth: int = 2,
        dim_latent: int | None = None,
        num_latents: int = 32,
        heads: int = 4,
        dim_head: int = 32,
        conv_widths: tuple[int, ...] = (64,),
        conv_blocks: int = 2,
        num_observations: int = 0,
        observation_features: int = 0,
        qk_norm: bool = True,
        latent_std: float = 1.0,
        query_std: float = 0.0,
    ):
        super().__init__()
        stride = 2 ** len(conv_widths)
        if not conv_widths:
            raise ValueError("a network for sequences needs at least one convolutional level, got conv_widths = ()")
        if length < stride or length % stride:
            levels = f"each of the {len(conv_widths)} convolutional levels halves it"
            raise ValueError(f"length must be a multiple of {stride}, because {levels}; got {quote(length)}")
        if (num_observations > 0) != (observation_features > 0):
            both = f"{quote(num_observations)} and {quote(observation_features)}"
            raise ValueError(f"num_observations and observation_features must both be 0, or neither; got {both}")
        dim_latent = dim if dim_latent is None else dim_latent
        self.config = {"dim": dim, "length": length, "channels": channels, "depth": depth}
        self.config |= {"latent_self_attn_depth": latent_self_attn_depth, "dim_latent": dim_latent}
        self.config |= {"num_latents": num_latents, "heads": heads, "dim_head": dim_head}
        self.config |= {"conv_widths": list(conv_widths), "conv_blocks": conv_blocks}
        self.config |= {"num_observations": num_observations, "observation_features": observation_features}
        self.config |= {"qk_norm": qk_norm, "latent_std": latent_std, "query_std": query_std}
        self.sample_shape, self.num_classes, self.classes = (channels, length), 0, None
        self.observation_shape = (num_observations, observation_features) if num_observations else None
        self._add_time(dim)
        self.observed = None
        if num_observations:
            self.observed = nn.Sequential(nn.Linear(observation_features, dim), nn.GELU(), nn.Linear(dim, dim))
        self.interface = SequenceInterface(
            2 * channels, channels, dim, 1, tuple(conv_widths), conv_blocks, self.dim_time
        )
        self._add_latents(length // stride)


def embed_time(time: Tensor, dim: int) -> Tensor:
    """Return sines and cosines of the time [B] in [0, 1], at geometric frequencies from 1000 down to 0.1: [B,dim].
    Vaswani et al. 2017, sec. 3.5.
    """
    frequencies = 1000 * torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=time.device) / (dim // 2))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


NETWORKS: dict[str, type[LatentNetwork]] = {"rin": RIN, "sequence_rin": SequenceRIN}  # those a checkpoint may name
