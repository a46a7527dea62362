"""RIN, the Recurrent Interface Network. Jabri, Fleet & Chen 2022, arXiv 2212.11972.

The network encodes an image as many interface tokens. In each of `depth` blocks, a smaller set of latent tokens reads
from the interface by cross-attention, processes the result by self-attention, and writes it back by cross-attention.
Most of the computation therefore runs on the latents. The latents of one call initialize those of the next.

The blocks support two interfaces. With `conv_widths=()`, as in the paper, square patches are embedded linearly. With
widths, pixel unshuffle folds the image into channels and a small U-shaped convolutional encoder and decoder surrounds
the RIN blocks, which run at its coarsest level; small images and small datasets train much faster this way.

Letters: B images, C channels, H W pixels, N interface tokens of width D (`dim`), M latents of width L (`dim_latent`), T
width of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dp.system.validation import quote

# ----------------------------------------------------------------------------
# The parts of a block


class Attention(nn.Module):
    """Multi-head attention from x [B,n,dim] to context [B,m,dim_context] -> [B,n,dim]. Vaswani et al. 2017, arXiv
    1706.03762, sec. 3.2.

    qk_norm: each head's queries and keys are divided by their root mean square, so that the weights cannot saturate.
    Dehghani et al. 2023, arXiv 2302.05442, sec. 2.
    """

    def __init__(self, dim: int, dim_context: int, heads: int, dim_head: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        # One gain for queries and keys: their product is all that counts.
        self.qk_gain = nn.Parameter(torch.ones(dim_head)) if qk_norm else None
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim_context, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out(rearrange(attend(*self._heads(x, context)), "b h n d -> b n (h d)"))

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the attention weights from x to context: [B,heads,n,m], with rows that sum to 1."""
        q, k, _ = self._heads(x, context)
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)

    def _heads(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        k, v = self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (self.to_q(x), k, v))
        if self.qk_gain is not None:
            # In q's dtype: PyTorch fuses the norm only if the gain has it, too.
            q, k = F.rms_norm(q, q.shape[-1:], self.qk_gain.to(q.dtype)), F.rms_norm(k, k.shape[-1:])
        return q, k, v


def normal_noise(*shape: int, std: float) -> Tensor:
    """Return normal random numbers. On the meta device nothing is drawn: there, torch would first import its compiler,
    which takes seconds.
    """
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_() * std


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute scaled dot-product attention of q, k and v, [B,heads,n,d] each."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    # On CPUs, the fused kernel's backward pass takes up to six times as long in bfloat16 as in float32.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class AdaptiveNorms(nn.Module):
    """All adaptive layer norms of one block, with a single projection of the time embedding. Peebles & Xie 2022, arXiv
    2212.09748, sec. 3.2.

    `for_time(time)` yields one function per width in `widths`, in order: layer norm, then a scale and a shift that
    depend on the time.
    """

    def __init__(self, widths: list[int], dim_time: int):
        super().__init__()
        self.widths = widths
        self.project = nn.Linear(dim_time, 2 * sum(widths))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def for_time(self, time: Tensor) -> Iterator:
        projected, end = self.project(time)[:, None], 0  # [B,1,2w] for each width w, one after the other
        for width in self.widths:
            start, middle, end = end, end + width, end + 2 * width  # slices: exporters limit the outputs of a split
            scale, shift = projected[..., start:middle], projected[..., middle:end]
            yield lambda x, scale=scale, shift=shift: F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class RINBlock(nn.Module):
    """Read, process, write. Jabri et al. 2022, sec. 2.2 and figure 3. d, m: widths of the tokens and the latents.
    per_head: the last arguments of `Attention`. queries: number and standard deviation of the queries' embeddings.
    """

    def __init__(self, d: int, m: int, dim_time: int, self_attn_depth: int, per_head: tuple, queries: tuple):
        super().__init__()
        count, std = queries
        self.queries = nn.Parameter(normal_noise(count, m, std=std)) if std else None  # [M,L]
        self.norms = AdaptiveNorms([m, d, m] + [m, m] * self_attn_depth + [d, m, d], dim_time)
        self.read = Attention(m, d, *per_head)
        self.read_mlp = feed_forward(m)
        self.compute = nn.ModuleList(
            nn.ModuleList([Attention(m, m, *per_head), feed_forward(m)]) for _ in range(self_attn_depth)
        )
        self.write = Attention(d, m, *per_head)
        self.write_mlp = feed_forward(d)

    def forward(
        self, tokens: Tensor, latents: Tensor, time: Tensor, attention: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the updated tokens [B,N,D] and latents [B,M,L], given the time embedding [B,T]. If `attention` is a
        list, the read weights [B,heads,M,N] are appended to it.
        """
        norm = self.norms.for_time(time)

        query, context = next(norm)(latents), next(norm)(tokens)
        query = query if self.queries is None else query + self.queries
        if attention is not None:
            attention.append(self.read.weights(query, context))
        latents = latents + self.read(query, context)
        latents = latents + self.read_mlp(next(norm)(latents))

        for attention_layer, mlp in self.compute:
            x = next(norm)(latents)
            latents = latents + attention_layer(x, x)
            latents = latents + mlp(next(norm)(latents))

        tokens = tokens + self.write(next(norm)(tokens), next(norm)(latents))
        tokens = tokens + self.write_mlp(next(norm)(tokens))
        return tokens, latents


# ----------------------------------------------------------------------------
# The two interfaces: image and self-conditioning [B,2C,H,W] -> tokens [B,N,D] -> prediction [B,C,H,W]


class PatchInterface(nn.Module):
    """Square patches, linearly embedded. Jabri et al. 2022, sec. 2.1."""

    def __init__(self, channels_in: int, channels_out: int, dim: int, patch_size: int):
        super().__init__()
        p = self.patch_size = patch_size
        self.embed = nn.Sequential(nn.Linear(channels_in * p * p, dim), nn.LayerNorm(dim))
        self.norm = nn.LayerNorm(dim)
        self.unembed = nn.Linear(dim, channels_out * p * p)
        nn.init.zeros_(self.unembed.weight)
        nn.init.zeros_(self.unembed.bias)

    def encode(self, x: Tensor, time: Tensor) -> tuple[Tensor, None]:
        p = self.patch_size
        return self.embed(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)), None

    def decode(self, tokens: Tensor, skips: None, time: Tensor) -> Tensor:
        p, side = self.patch_size, math.isqrt(tokens.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):  # the output layer runs in full precision
            patches = self.unembed(self.norm(tokens.to(self.norm.weight.dtype)))
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=p, q=p)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the time embedding scales and shifts the input of the second. Dhariwal & Nichol 2021, arXiv
    2105.05233, sec. 3.1 (AdaGN).
    """

    def __init__(self, dim_in: int, dim: int, dim_time: int):
        super().__init__()
        self.first = nn.Sequential(group_norm(dim_in), nn.SiLU(), nn.Conv2d(dim_in, dim, 3, padding=1))
        self.time = nn.Linear(dim_time, 2 * dim)
        self.norm = group_norm(dim)
        self.second = nn.Conv2d(dim, dim, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)
        self.skip = nn.Conv2d(dim_in, dim, 1) if dim_in != dim else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[..., None, None].chunk(2, dim=1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


class ConvInterface(nn.Module):
    """A U-shaped convolutional encoder and decoder. Each `fold` x `fold` square of pixels is first folded into
    channels. Each width is one level of residual blocks, and each level halves the resolution; the coarsest level, of
    width `dim`, holds the tokens.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        dim: int,
        fold: int,
        widths: tuple[int, ...],
        blocks: int,
        dim_time: int,
    ):
        super().__init__()
        self.fold = fold
        self.stem = nn.Conv2d(channels_in * fold * fold, widths[0], 3, padding=1)
        self.down, self.downsample, self.up, self.upsample = (nn.ModuleList() for _ in range(4))
        for width, coarser in zip(widths, (*widths[1:], dim), strict=True):
            self.down.append(nn.ModuleList(ResidualBlock(width, width, dim_time) for _ in range(blocks)))
            self.downsample.append(nn.Conv2d(width, coarser, 3, stride=2, padding=1))
            self.upsample.append(nn.Conv2d(coarser, width, 3, padding=1))
            self.up.append(
                nn.ModuleList(ResidualBlock(2 * width if i == 0 else width, width, dim_time) for i in range(blocks))
            )
        self.before, self.after = ResidualBlock(dim, dim, dim_time), ResidualBlock(dim, dim, dim_time)
        self.norm = group_norm(widths[0])
        self.out = nn.Conv2d(widths[0], channels_out * fold * fold, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def encode(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        folded = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=self.fold, q=self.fold)
        x = self.stem(folded)
        skips = []
        for blocks, downsample in zip(self.down, self.downsample, strict=True):
            for block in blocks:
                x = block(x, time)
            skips.append(x)
            x = downsample(x)
        return rearrange(self.before(x, time), "b d h w -> b (h w) d"), skips

    def decode(self, tokens: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        x = self.after(rearrange(tokens, "b (h w) d -> b d h w", h=math.isqrt(tokens.shape[1])), time)
        for blocks, upsample, skip in reversed(list(zip(self.up, self.upsample, skips, strict=True))):
            x = torch.cat([upsample(F.interpolate(x, scale_factor=2)), skip], dim=1)
            for block in blocks:
                x = block(x, time)
        with torch.autocast(x.device.type, enabled=False):  # the output layer runs in full precision
            return F.pixel_shuffle(self.out(F.silu(self.norm(x.to(self.norm.weight.dtype)))), self.fold)


def group_norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(dim, 8), dim)


# ----------------------------------------------------------------------------
# The network


class RIN(nn.Module):
    """The network of `DiffusionPolicy`.

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
        self.channels, self.image_size, self.dim_time = channels, image_size, 2 * dim
        self.num_classes = num_classes
        self.time = nn.Sequential(
            nn.Linear(2 * dim, self.dim_time), nn.SiLU(), nn.Linear(self.dim_time, self.dim_time), nn.SiLU()
        )
        # Without a bias, so that no class adds nothing.
        self.classes = nn.Linear(num_classes, self.dim_time, bias=False) if num_classes else None

        if conv_widths:
            self.interface = ConvInterface(
                2 * channels, channels, dim, fold, tuple(conv_widths), conv_blocks, self.dim_time
            )
        else:
            self.interface = PatchInterface(2 * channels, channels, dim, patch_size)
        self.positions = nn.Parameter(normal_noise((image_size // patch_size) ** 2, dim, std=0.02))

        self.latents = nn.Parameter(normal_noise(num_latents, dim_latent, std=latent_std))
        # The path of the carried latents has no bias, so that zeros give exactly the learned initial latents.
        self.carried = nn.Linear(dim_latent, dim_latent, bias=False)
        nn.init.zeros_(self.carried.weight)
        sizes = (dim, dim_latent, self.dim_time, latent_self_attn_depth, (heads, dim_head, qk_norm))
        self.blocks = nn.ModuleList(RINBlock(*sizes, (num_latents, query_std)) for _ in range(depth))

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
        """Return the prediction [B,C,H,W] for x [B,C,H,W] at time [B] in [0, 1], given x_self_cond [B,C,H,W], latents
        [B,M,L] and, for a network with classes, condition [B], int64 from 0 to `num_classes`. Zeros mean none.

        With `return_latents` or `return_attention`, return a tuple that also contains the latents [B,M,L] or each
        block's read attention [B,heads,M,N].
        """
        if x_self_cond is None:
            x_self_cond = torch.zeros_like(x)
        if latents is None:  # zeros keep `carried` in the graph, as distributed training requires
            latents = x.new_zeros(len(x), *self.latents.shape)
        time = self._embed(time, condition)  # [B,T]

        tokens, skips = self.interface.encode(torch.cat([x, x_self_cond], dim=1), time)  # [B,N,D]
        tokens = tokens + self.positions
        latents = self.latents + self.carried(F.layer_norm(latents, latents.shape[-1:]))  # [B,M,L]

        attention: list[Tensor] | None = [] if return_attention else None
        for block in self.blocks:
            tokens, latents = block(tokens, latents, time, attention)
        prediction = self.interface.decode(tokens, skips, time)
        extras = ([latents] if return_latents else []) + ([attention] if return_attention else [])
        return (prediction, *extras) if extras else prediction

    def _embed(self, time: Tensor, condition: Tensor | None) -> Tensor:
        """Return the embedding [B,T] of times [B] and classes [B]."""
        *layers, activation = self.time
        x = embed_time(time, 2 * self.config["dim"]).to(self.positions.dtype)
        for layer in layers:
            x = layer(x)
        if self.classes is not None:  # zeros keep it in the graph, as distributed training requires
            condition = torch.zeros(len(x), dtype=torch.int64) if condition is None else condition
            one_hot = F.one_hot(condition.to(x.device), self.num_classes + 1)[:, 1:]
            x = x + self.classes(one_hot.to(x.dtype))
        return activation(x)


def embed_time(time: Tensor, dim: int) -> Tensor:
    """Return sines and cosines of the time [B] in [0, 1], at geometric frequencies from 1000 down to 0.1: [B,dim].
    Vaswani et al. 2017, sec. 3.5.
    """
    frequencies = 1000 * torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=time.device) / (dim // 2))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


NETWORKS: dict[str, type[nn.Module]] = {"rin": RIN}  # the network types that a checkpoint may name
