"""The blocks of a RIN: latents read from the interface tokens, process what they read, and write it back.

Letters: B rows, N interface tokens of width D, M latents of width L, T width of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


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

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: [B,1,1,m], which tokens of the context can be read; None for all."""
        return self.to_out(rearrange(attend(*self._heads(x, context), mask), "b h n d -> b n (h d)"))

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention weights from x to context: [B,heads,n,m], with rows that sum to 1."""
        q, k, _ = self._heads(x, context)
        products = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return (products if mask is None else products.masked_fill(~mask, -torch.inf)).softmax(dim=-1)

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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention of q, k and v, [B,heads,n,d] each. mask: which keys count."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, mask)
    # On CPUs, the fused kernel's backward pass takes up to six times as long in bfloat16 as in float32.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)


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
        self,
        tokens: Tensor,
        latents: Tensor,
        time: Tensor,
        attention: list[Tensor] | None = None,
        observed: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the updated tokens [B,N,D] and latents [B,M,L], given the time embedding [B,T]. observed: further
        tokens [B,O,D] that are read and not written, and which of all N+O can be read, [B,1,1,N+O]. If `attention` is a
        list, the read weights [B,heads,M,N+O] are appended to it.
        """
        norm = self.norms.for_time(time)

        beside, mask = observed or (None, None)
        read = tokens if beside is None else torch.cat([tokens, beside], dim=1)
        query, context = next(norm)(latents), next(norm)(read)
        query = query if self.queries is None else query + self.queries
        if attention is not None:
            attention.append(self.read.weights(query, context, mask))
        latents = latents + self.read(query, context, mask=mask)
        latents = latents + self.read_mlp(next(norm)(latents))

        for attention_layer, mlp in self.compute:
            x = next(norm)(latents)
            latents = latents + attention_layer(x, x)
            latents = latents + mlp(next(norm)(latents))

        tokens = tokens + self.write(next(norm)(tokens), next(norm)(latents))
        tokens = tokens + self.write_mlp(next(norm)(tokens))
        return tokens, latents
