"""Attention in training on a CPU: with dropout in the memory of the tokens, not of their pairs, and fast in 16 bits.

torch's fused kernel for CPUs takes no dropout, and without the kernel every pair of tokens of a text is kept several
times for the backward pass: its weight, its mask, its dropped weight. Here the pairs of some rows and heads at a time
are computed, and computed again in the backward pass.

The fused kernel's backward pass takes three to five times as long in bfloat16 as in float32, also where the processor
multiplies bfloat16 natively. So what is trained in 16 bits goes through it in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from l2v.kernels.devices import kind_of
from l2v.kernels.dropout import draw_keys, dropout_scale, mask_of

_AT_ONCE = 2**20
"""Pairs of tokens."""

Mask = Bool[Tensor, "#batch #heads length length"] | Float[Tensor, "#batch #heads length length"]


def register_attention() -> None:
    """Have transformers' ``sdpa`` attention go this way in training on a CPU; of the whole process."""
    AttentionInterface.register("sdpa", _sdpa)


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    # autocast multiplies all attention in its dtype
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    plain = not torch.compiler.is_compiling() and all(kind_of(x.device) == "cpu" for x in (query, key, value))
    if dropout == 0 and plain and dtype.itemsize < 4 and torch.is_grad_enabled() and query.requires_grad:
        with torch.autocast("cpu", enabled=False):
            if attention_mask is not None and attention_mask.is_floating_point():
                attention_mask = attention_mask.float()
            output, _ = sdpa_attention_forward(
                module, query.float(), key.float(), value.float(), attention_mask, 0.0, scaling, is_causal, **kwargs
            )
        return output.to(dtype), None
    own = (
        plain
        and dropout > 0
        and key.shape[2] == length
        and (attention_mask is None or attention_mask.dim() == 4)
        and not any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    )
    if not own:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    if attention_mask is None and causal:
        attention_mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return dropped_attention(query.to(dtype), key.to(dtype), value.to(dtype), attention_mask, dropout, scaling), None


def dropped_attention(
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch groups length width"],
    value: Float[Tensor, "batch groups length out"],
    mask: Mask | None,
    probability: float,
    scale: float | None = None,
) -> Float[Tensor, "batch length heads out"]:
    """softmax(scale query key' + mask), some weights dropped, times the values; on a CPU, computed in float32 at least.

    Args:
        query: ``heads`` is a multiple of the ``groups`` of keys and values, whose heads come one after another.
        key: see query.
        value: see query.
        mask: true for pairs that see each other, or what is added to their scores. None: all see each other.
        probability: of a weight to be dropped; the others are scaled up.
        scale: default: 1 / sqrt(width).
    """
    return _DroppedAttention.apply(
        query, key, value, mask, probability, query.shape[-1] ** -0.5 if scale is None else scale
    )


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, probability: float, scale: float
    ) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1])
        by_head, drawn = output.transpose(1, 2), []
        for part in _parts(query, key):
            q, k, v = part.queries(query), part.of(key), part.of(value)
            weights = _weights(q, k, part.mask(mask), scale, part.size)
            drawn.append(draw_keys(weights.numel()))
            weights.mul_(mask_of(weights.shape, probability, drawn[-1]))
            part.write(_scaled_product(weights, v, dropout_scale(probability)), by_head)
        ctx.save_for_backward(query, key, value, mask, output)
        ctx.probability, ctx.scale, ctx.drawn = probability, scale, drawn
        return output

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        # each query's sum over keys of a weight times its gradient
        sums = (_wide(gradient) * output).sum(dim=-1, keepdim=True).transpose(1, 2)
        by_head = gradient.transpose(1, 2)
        for part, drawn in zip(_parts(query, key), ctx.drawn, strict=True):
            q, k, v = part.queries(query), part.of(key), part.of(value)
            g = part.queries(by_head) * dropout_scale(ctx.probability)
            weights = _weights(q, k, part.mask(mask), ctx.scale, part.size)
            stays = mask_of(weights.shape, ctx.probability, drawn)
            of_scores = torch.bmm(g, v.mT).mul_(stays).sub_(part.queries(sums)).mul_(weights)
            part.write_groups(torch.bmm(weights.mul_(stays).mT, g), of_value)
            part.write_groups(_scaled_product(of_scores.mT, q, ctx.scale), of_key)
            part.write(_scaled_product(of_scores, k, ctx.scale), of_query)
        return of_query, of_key, of_value, None, None, None


def _wide(x: Tensor) -> Tensor:
    """16 bits are too few to add up weights."""
    return x.float() if x.dtype.itemsize < 4 else x


def _scaled_product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(x.new_zeros(()), x, y, beta=0, alpha=scale)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, groups: int) -> Tensor:
    """(rows * groups, heads of a group * length, length)."""
    scores = _scaled_product(query, key.mT, scale)
    if mask is not None:
        by_head = scores.view(len(scores) // groups, -1, *mask.shape[2:])
        if mask.dtype == torch.bool:
            by_head.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            by_head.add_(mask)
    return scores.softmax(dim=-1)


@dataclass(frozen=True)
class _Part:
    """Some rows of a batch, and some groups of heads: those that share keys and values."""

    rows: slice
    groups: slice
    heads: slice

    @property
    def size(self) -> int:
        """Groups of a row."""
        return self.groups.stop - self.groups.start

    def of(self, x: Tensor) -> Tensor:
        """Keys, values or what is like them -> (rows * groups, length, width), to compute with."""
        return _wide(x[self.rows, self.groups].flatten(0, 1))

    def write_groups(self, part: Tensor, x: Tensor) -> None:
        """The opposite of ``of``."""
        x[self.rows, self.groups] = part.unflatten(0, (-1, self.size))

    def queries(self, x: Tensor) -> Tensor:
        """(batch, heads, length, width) -> (rows * groups, heads of a group * length, width), to compute with."""
        part = x[self.rows, self.heads]
        return _wide(part.reshape(len(part) * self.size, -1, part.shape[-1]))

    def write(self, part: Tensor, x: Tensor) -> None:
        """The opposite of ``queries``."""
        rows = len(part) // self.size
        x[self.rows, self.heads] = part.view(rows, -1, *x.shape[2:])

    def mask(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return x[self.rows if len(x) > 1 else slice(None), self.heads if x.shape[1] > 1 else slice(None)]


def _parts(query: Tensor, key: Tensor) -> Iterator[_Part]:
    """Whole rows if one is not too large, else some groups of a row."""
    (batch, heads, length, _), groups = query.shape, key.shape[1]
    size = heads // groups
    at_once = max(1, _AT_ONCE // (size * length * length))
    rows, of_row = max(1, at_once // groups), min(at_once, groups)
    for row in range(0, batch, rows):
        for group in range(0, groups, of_row):
            last = min(group + of_row, groups)
            yield _Part(slice(row, min(row + rows, batch)), slice(group, last), slice(group * size, last * size))
