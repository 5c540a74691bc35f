"""Attention on a CPU: in the memory of the tokens, not of their pairs, with dropout and in bfloat16 too.

torch's fused kernel for CPUs takes no dropout, and without the kernel every pair of tokens of a text is kept several
times for the backward pass: its weight, its mask, its dropped weight. Here the pairs of some rows and heads at a time
are computed, and computed again in the backward pass.

The fused kernel's backward pass takes three to five times as long in bfloat16 as in float32, also where the processor
multiplies bfloat16 natively. There, attention is made of products in bfloat16 (:class:`_InBfloat16`), in inference too;
where it does not, that of training is the fused kernel in float32.

Of a row that holds several texts, the pairs within the texts are computed, and none between them (:func:`keep_apart`).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from l2v.kernels.devices import is_planned, kind_of
from l2v.kernels.dropout import draw_keys, dropout_scale, mask_in_place, mask_of

_AT_ONCE = 5 * 2**18
"""Pairs of tokens: 1.3 million."""

_WORTH_A_GROUP = 2**16
"""Pairs of a token with padding that take as long as what a further group of texts costs (docs/performance.md)."""

Mask = Bool[Tensor, "#batch #heads length length"] | Float[Tensor, "#batch #heads length length"]


def register_attention() -> None:
    """Have transformers' ``sdpa`` attention go this way in training on a CPU; of the whole process."""
    AttentionInterface.register("sdpa", _sdpa)


def is_registered() -> bool:
    return AttentionInterface()["sdpa"] is _sdpa


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
    bare = not any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if plain and bare and attention_mask in _texts:

        def within(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            return _sdpa(module, queries, keys, values, mask, dropout, scaling, is_causal=False, **kwargs)[0]

        return _texts[attention_mask].attend(within, query, key, value), None
    own = (
        plain
        and (dropout > 0 or _is_fast(dtype))
        and key.shape[2] == length
        and (attention_mask is None or attention_mask.dim() == 4)
        # in bfloat16 a number added to a score is rounded together with it
        and (dropout > 0 or attention_mask is None or attention_mask.dtype == torch.bool)
        and bare
    )
    if own:
        if attention_mask is None and causal:
            attention_mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        return lean_attention(query, key, value, attention_mask, dropout, scaling, dtype), None
    trains = torch.is_grad_enabled() and query.requires_grad
    if plain and trains and dtype.itemsize < 4 and dropout == 0:
        with torch.autocast("cpu", enabled=False):
            if attention_mask is not None and attention_mask.is_floating_point():
                attention_mask = attention_mask.float()
            output, _ = sdpa_attention_forward(
                module, query.float(), key.float(), value.float(), attention_mask, 0.0, scaling, is_causal, **kwargs
            )
        return output.to(dtype), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)


@functools.cache
def _is_fast(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies a dtype of 16 bits faster than float32."""
    return dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


_texts = WeakTensorKeyDictionary()
"""By the mask that a model is given: what :func:`keep_apart` found."""


def keep_apart(mask: Mask, starts: Bool[Tensor, "batch length"]) -> None:
    """Where this very mask is given to attention on a CPU, no pairs of two texts are computed.

    Args:
        mask: (batch, 1, length, length), true for pairs that see each other, none of them of two texts; others are let
            be.
        starts: where a text begins, or a stretch of padding.
    """
    if mask.device.type == "cpu" and mask.dtype == torch.bool and not is_planned():
        _texts[mask] = _Texts.of(mask, starts)


@dataclass(frozen=True)
class _Texts:
    """The texts of packed rows, each in a row of its own: those of similar lengths together, with padding.

    Tokens are counted through all rows of a batch.
    """

    padded: Tensor
    """By the token with padding: which token it is, any where it is padding."""
    padding: Tensor
    """Which of those are padding."""
    own: Tensor
    """By the token: where it is with padding."""
    shapes: Sequence[tuple[int, int]]
    """By the group: texts, and tokens of the longest."""
    masks: Sequence[Tensor | None]
    """By the group: which pairs see each other; None: all."""

    @staticmethod
    def of(mask: Tensor, starts: Tensor) -> "_Texts":
        length, count = mask.shape[-1], starts.numel()
        begins = starts.flatten().nonzero().flatten()
        lengths = torch.diff(begins, append=begins.new_tensor([count]))
        order = lengths.argsort(descending=True, stable=True)
        by_length = lengths[order].tolist()
        padded, absent, masks, shapes = [], [], [], []
        for first, last in _groups(by_length):
            longest = by_length[first]
            rows, places = order[first:last], torch.arange(longest)
            outside = places >= lengths[rows, None]
            tokens = torch.where(outside, 0, begins[rows, None] + places)
            columns = tokens % length
            seen = mask[:, 0][(tokens // length)[:, :1, None], columns[:, :, None], columns[:, None]]
            seen = seen.logical_or_(outside[:, :, None]).logical_and_(~outside[:, None])
            masks.append(None if bool(seen.all()) else seen[:, None])
            padded.append(tokens.flatten())
            absent.append(outside.flatten())
            shapes.append((last - first, longest))
        tokens, outside = torch.cat(padded), torch.cat(absent)
        inside = (~outside).nonzero().flatten()
        own = torch.empty(count, dtype=torch.long).index_copy_(0, tokens[inside], inside)
        return _Texts(tokens, outside.nonzero().flatten(), own, shapes, masks)

    def attend(self, within: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(batch, length, heads, out), by ``within``, attention of rows of one text each with a mask."""
        batch, _, length, _ = query.shape
        groups = zip(*(self._by_text(x) for x in (query, key, value)), self.masks, strict=True)
        outputs = [within(*given).flatten(0, 1) for given in groups]
        return _Moved.apply(torch.cat(outputs), self.own, None, self.padded, self.padding).unflatten(0, (batch, length))

    def _by_text(self, x: Tensor) -> list[Tensor]:
        """(batch, heads, length, width) -> by the group (texts, heads, length of the longest, width)."""
        moved = _Moved.apply(x.transpose(1, 2).flatten(0, 1), self.padded, self.padding, self.own, None)
        parts = moved.split([texts * longest for texts, longest in self.shapes])
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, self.shapes, strict=True)]


def _groups(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where groups of texts, longest first, begin and end."""
    begins: list[int] = []
    spent = 0
    for number, length in enumerate(lengths):
        spent += lengths[begins[-1]] ** 2 - length**2 if begins else 0
        if not begins or spent > _WORTH_A_GROUP:
            begins.append(number)
            spent = 0
    return list(zip(begins, [*begins[1:], len(lengths)], strict=True))


class _Moved(torch.autograd.Function):
    """Rows in another order; some of them zeros."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, zeros: Tensor | None, back: Tensor, of_zeros: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(back, of_zeros)
        return _moved(x, rows, zeros)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _moved(gradient, *ctx.saved_tensors), None, None, None, None


def _moved(x: Tensor, rows: Tensor, zeros: Tensor | None) -> Tensor:
    y = x.flatten(1).index_select(0, rows)
    return (y if zeros is None else y.index_fill_(0, zeros, 0.0)).unflatten(1, x.shape[1:])


def lean_attention(
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch groups length width"],
    value: Float[Tensor, "batch groups length out"],
    mask: Mask | None,
    probability: float,
    scale: float | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch length heads out"]:
    """softmax(scale query key' + mask), some weights dropped, times the values, on a CPU.

    In bfloat16, with a mask of booleans or none, products are of bfloat16 numbers and sums of float32, as in fused
    kernels; else all is computed in float32 at least.

    Args:
        query: ``heads`` is a multiple of the ``groups`` of keys and values, whose heads come one after another.
        key: see query.
        value: see query.
        mask: true for pairs that see each other, or what is added to their scores. None: all see each other.
        probability: of a weight to be dropped; the others are scaled up.
        scale: default: 1 / sqrt(width).
        dtype: of what is given, rounded once, and of what comes out. Default: the queries'.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dtype = dtype or query.dtype
    if dtype == torch.bfloat16 and _is_fast(dtype) and (mask is None or mask.dtype == torch.bool):
        return _InBfloat16.apply(query, key, value, mask, probability, scale)
    return _Wide.apply(query.to(dtype), key.to(dtype), value.to(dtype), mask, probability, scale)


class _Wide(torch.autograd.Function):
    """In float32 at least."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, probability: float, scale: float
    ) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1])
        by_head, drawn, wide = output.transpose(1, 2), [], _wide(query.dtype)
        for part in _parts(query, key):
            q, k, v = part.queries(query, wide), part.of(key, wide), part.of(value, wide)
            weights = _weights(q, k, part.mask(mask), scale, part.size)
            drawn.append(draw_keys(weights.numel()))
            mask_in_place(weights, mask_of(weights.shape, probability, drawn[-1], weights.dtype))
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
        wide = _wide(query.dtype)
        sums = (gradient.to(wide) * output).sum(dim=-1, keepdim=True).transpose(1, 2)
        by_head = gradient.transpose(1, 2)
        for part, drawn in zip(_parts(query, key), ctx.drawn, strict=True):
            q, k, v = part.queries(query, wide), part.of(key, wide), part.of(value, wide)
            g = part.queries(by_head, wide) * dropout_scale(ctx.probability)
            weights = _weights(q, k, part.mask(mask), ctx.scale, part.size)
            stays = mask_of(weights.shape, ctx.probability, drawn, weights.dtype)
            of_scores = mask_in_place(torch.bmm(g, v.mT), stays).sub_(part.queries(sums, wide)).mul_(weights)
            part.write_groups(torch.bmm(mask_in_place(weights, stays).mT, g), of_value)
            part.write_groups(_scaled_product(of_scores.mT, q, ctx.scale), of_key)
            part.write(_scaled_product(of_scores, k, ctx.scale), of_query)
        return of_query, of_key, of_value, None, None, None


class _InBfloat16(torch.autograd.Function):
    """Products of bfloat16 numbers, and few passes over the pairs of tokens, all in 16 bits.

    A product is rounded once to bfloat16, whose error grows with the number. So what a score is compared with is
    subtracted within the product, in float32: its row's greatest in the forward pass, the logarithm of the row's sum in
    the backward pass, by two more columns of the queries (see :func:`_shift`) and ones beside the keys. What is left is
    near 0 where a weight is large. A row's mean is subtracted from the gradients of its weights likewise.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, probability: float, scale: float
    ) -> Tensor:
        ctx.dtypes, dtype = (query.dtype, key.dtype, value.dtype), torch.bfloat16
        query, key, value, bits = query.to(dtype), key.to(dtype), value.to(dtype), _bits(mask)
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1])
        logarithms = torch.empty(batch, heads, length, 1)
        by_head, drawn = output.transpose(1, 2), []
        for part in _parts(query, key):
            q, k, v = part.queries(query, dtype, 2), part.of(key, dtype, 2), part.of(value, dtype)
            scores = _scaled_product(q, k.mT, scale)
            if (seen := part.mask(bits)) is not None:
                part.pairs(scores).bitwise_and_(seen).bitwise_or_(seen.bitwise_not() & _LEAST)
            greatest = scores.float().amax(dim=-1, keepdim=True)
            _shift(q, greatest, scale)
            weights = _masked_weights(q, k, part, bits, scale, scores)
            sums = weights.float().sum(dim=-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
            part.write(greatest.add_(sums.log()), logarithms)
            if probability > 0:
                drawn.append(draw_keys(weights.numel()))
                mask_in_place(weights, mask_of(weights.shape, probability, drawn[-1], dtype))
            part.write(torch.bmm(weights, v).mul_(dropout_scale(probability) / sums), by_head)
        ctx.save_for_backward(query, key, value, bits, output, logarithms)
        ctx.probability, ctx.scale, ctx.drawn = probability, scale, drawn
        return output

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bits, output, logarithms = ctx.saved_tensors
        given = zip((query, key, value), ctx.dtypes, strict=True)
        of_query, of_key, of_value = (torch.empty_like(x, dtype=dtype) for x, dtype in given)
        # each query's sum over keys of a weight times its gradient
        sums = (gradient.float() * output).sum(dim=-1, keepdim=True).transpose(1, 2)
        by_head, wide, dtype = gradient.transpose(1, 2), torch.float32, query.dtype
        of_dropout, centred = dropout_scale(ctx.probability), _centred(key)
        for number, part in enumerate(_parts(query, key)):
            q, g = part.queries(query, dtype, 2), part.queries(by_head, dtype, 2)
            k, v = part.of(key, dtype, 2), part.of(value, dtype, 2)
            _shift(q, part.queries(logarithms, wide), ctx.scale)
            weights = _masked_weights(q, k, part, bits, ctx.scale)
            if ctx.probability > 0:
                stays = mask_of(weights.shape, ctx.probability, ctx.drawn[number], dtype)
                of_weights = mask_in_place(_scaled_product(g, v.mT, of_dropout), stays)
                of_scores = of_weights.sub_(part.queries(sums, wide)).mul_(weights)
                mask_in_place(weights, stays)
            else:
                _shift(g, part.queries(sums, wide), 1.0)
                of_scores = torch.bmm(g, v.mT).mul_(weights)
            part.write_groups(_scaled_product(weights.mT, g[..., :-2], of_dropout), of_value)
            part.write_groups(_scaled_product(of_scores.mT, q[..., :-2], ctx.scale), of_key)
            part.write(_scaled_product(of_scores, part.of(centred, dtype), ctx.scale), of_query)
        return of_query, of_key, of_value, None, None, None


_LEAST = torch.tensor(torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16).view(torch.int16)


def _centred(key: Tensor) -> Tensor:
    """Without what all keys of a head have in common, often most of them: the gradients of a query's scores, which they
    are multiplied by for the query's own gradient, have a sum of 0 but for rounding."""
    wide = key.float()
    return (wide - wide.mean(dim=2, keepdim=True)).to(key.dtype)


def _bits(mask: Tensor | None) -> Tensor | None:
    """All bits where a mask is true, none elsewhere."""
    return None if mask is None else -mask.to(torch.int16)


def _shift(queries: Tensor, by: Tensor, scale: float) -> None:
    """Have the products of queries with keys, times the scale, be less by a number a query: its two parts of bfloat16
    are the last columns, and those of the keys ones."""
    shift = by / -scale
    high = shift.to(queries.dtype)
    queries[..., -2:-1] = high
    queries[..., -1:] = shift.sub_(high)


def _masked_weights(
    queries: Tensor, keys: Tensor, part: "_Part", bits: Tensor | None, scale: float, out: Tensor | None = None
) -> Tensor:
    """exp(scale queries keys') of pairs that see each other, 0 for others."""
    nothing = queries.new_zeros(())
    weights = torch.baddbmm(nothing, queries, keys.mT, beta=0, alpha=scale, out=out).exp_()
    if (seen := part.mask(bits)) is not None:
        part.pairs(weights).bitwise_and_(seen)
    return weights


def _wide(dtype: torch.dtype) -> torch.dtype:
    """16 bits are too few to add up weights."""
    return torch.promote_types(dtype, torch.float32)


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

    def of(self, x: Tensor, dtype: torch.dtype, ones: int = 0) -> Tensor:
        """Keys, values or what is like them -> (rows * groups, length, width), to compute with; and more columns."""
        return _with_columns(x[self.rows, self.groups], dtype, ones, 1.0).flatten(0, 1)

    def write_groups(self, part: Tensor, x: Tensor) -> None:
        """The opposite of ``of``."""
        x[self.rows, self.groups] = part.unflatten(0, (-1, self.size))

    def queries(self, x: Tensor, dtype: torch.dtype, zeros: int = 0) -> Tensor:
        """(batch, heads, length, width) -> (rows * groups, heads of a group * length, width), likewise."""
        part = _with_columns(x[self.rows, self.heads], dtype, zeros, 0.0)
        return part.reshape(len(part) * self.size, -1, part.shape[-1])

    def write(self, part: Tensor, x: Tensor) -> None:
        """The opposite of ``queries``."""
        rows = len(part) // self.size
        x[self.rows, self.heads] = part.view(rows, -1, *x.shape[2:])

    def pairs(self, scores: Tensor) -> Tensor:
        """The bits of scores of 16 bits, as ``mask`` has them: (rows, heads, length, length)."""
        return scores.view(torch.int16).view(len(scores) // self.size, -1, scores.shape[-1], scores.shape[-1])

    def mask(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return x[self.rows if len(x) > 1 else slice(None), self.heads if x.shape[1] > 1 else slice(None)]


def _with_columns(x: Tensor, dtype: torch.dtype, more: int, number: float) -> Tensor:
    if not more:
        return x.to(dtype)
    y = x.new_full((*x.shape[:-1], x.shape[-1] + more), number, dtype=dtype)
    y[..., :-more] = x
    return y


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
