"""The interfaces of a RIN: image and self-conditioning [B,2C,H,W] -> tokens [B,N,D] -> prediction [B,C,H,W]. Those of
sequences have one axis, [B,2C,S] and [B,C,S].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


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
    """Two convolutions of width 3; the time embedding scales and shifts the input of the second. Dhariwal & Nichol
    2021, arXiv 2105.05233, sec. 3.1 (AdaGN). conv: nn.Conv2d, or nn.Conv1d for sequences.
    """

    def __init__(self, dim_in: int, dim: int, dim_time: int, conv: type[nn.Module]):
        super().__init__()
        self.first = nn.Sequential(group_norm(dim_in), nn.SiLU(), conv(dim_in, dim, 3, padding=1))
        self.time = nn.Linear(dim_time, 2 * dim)
        self.norm = group_norm(dim)
        self.second = conv(dim, dim, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)
        self.skip = conv(dim_in, dim, 1) if dim_in != dim else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[(..., *[None] * (x.ndim - 2))].chunk(2, dim=1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


class ConvInterface(nn.Module):
    """A U-shaped convolutional encoder and decoder. Each `fold` x `fold` square of pixels is first folded into
    channels. Each width is one level of residual blocks, and each level halves the resolution; the coarsest level, of
    width `dim`, holds the tokens.
    """

    conv: type[nn.Module] = nn.Conv2d

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
        self.fold, conv = fold, self.conv
        self.stem = conv(channels_in * fold * fold, widths[0], 3, padding=1)
        self.down, self.downsample, self.up, self.upsample = (nn.ModuleList() for _ in range(4))
        for width, coarser in zip(widths, (*widths[1:], dim), strict=True):
            self.down.append(nn.ModuleList(ResidualBlock(width, width, dim_time, conv) for _ in range(blocks)))
            self.downsample.append(conv(width, coarser, 3, stride=2, padding=1))
            self.upsample.append(conv(coarser, width, 3, padding=1))
            widths_in = [2 * width] + [width] * (blocks - 1)  # the first one also takes the skip connection
            self.up.append(nn.ModuleList(ResidualBlock(each, width, dim_time, conv) for each in widths_in))
        self.before, self.after = (ResidualBlock(dim, dim, dim_time, conv) for _ in range(2))
        self.norm = group_norm(widths[0])
        self.out = conv(widths[0], channels_out * fold * fold, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def encode(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.stem(self._folded(x))
        skips = []
        for blocks, downsample in zip(self.down, self.downsample, strict=True):
            for block in blocks:
                x = block(x, time)
            skips.append(x)
            x = downsample(x)
        return self.before(x, time).flatten(2).transpose(1, 2), skips

    def decode(self, tokens: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        x = self.after(self._grid(tokens), time)
        for blocks, upsample, skip in reversed(list(zip(self.up, self.upsample, skips, strict=True))):
            x = torch.cat([upsample(F.interpolate(x, scale_factor=2)), skip], dim=1)
            for block in blocks:
                x = block(x, time)
        with torch.autocast(x.device.type, enabled=False):  # the output layer runs in full precision
            return self._unfolded(self.out(F.silu(self.norm(x.to(self.norm.weight.dtype)))))

    def _folded(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=self.fold, q=self.fold)

    def _grid(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b (h w) d -> b d h w", h=math.isqrt(tokens.shape[1]))

    def _unfolded(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.fold)


class SequenceInterface(ConvInterface):
    """The same for sequences, with convolutions in one dimension. Nothing is folded: `fold` is 1."""

    conv = nn.Conv1d

    def _folded(self, x: Tensor) -> Tensor:
        return x

    def _grid(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2)

    def _unfolded(self, x: Tensor) -> Tensor:
        return x


def group_norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(dim, 8), dim)
