"""Dropout masks of a byte a number, cheap to draw on a CPU, and to draw again."""

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from l2v.kernels.devices import is_planned

_DRAWS = 2**16
"""On a CPU the probability is rounded to a multiple of 1 / 65,536; the scale that makes up for it is exact."""
_AT_ONCE = 2**18
"""Numbers of a mask: what they are made of stays in a core's cache."""

Key = tuple[int, int]
"""Where a part of a mask begins in the pool of random bits, and which of them to flip."""


def dropout_mask(shape: torch.Size, probability: float) -> tuple[UInt8[Tensor, "..."], float]:
    """On a CPU: 1 for numbers that stay, 0 for others, and what to multiply by: 1 / (the share that stays, on average).

    For :func:`masked`. In a hundredth of the time of ``Tensor.bernoulli_``: torch's generator, and so the step's seed,
    chooses a part of a pool of random bits, and which of them to flip.
    """
    return mask_of(shape, probability, draw_keys(shape.numel())), dropout_scale(probability)


def masked(
    x: Float[Tensor, "*shape"], mask: UInt8[Tensor, "*shape"] | Bool[Tensor, "*shape"] | None, scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """The numbers that stay, and 0 for others, without a gradient; all of them without a mask.

    Args:
        x: the numbers.
        mask: of :func:`dropout_mask`, or of torch's own dropout, whose kernel for gradients takes it.
        scale: what the numbers are multiplied by as well where the mask is torch's.
    """
    if mask is None:
        return x
    if mask.dtype == torch.bool:
        return torch.ops.aten.native_dropout_backward(x, mask, scale)
    return x * mask


def draw_keys(count: int) -> list[Key]:
    """Of torch's generator: what the masks of ``count`` numbers are made from, see :func:`mask_of`."""
    parts = -(-count // _AT_ONCE)
    return [(begin, key) for begin, key in torch.randint(2**62, (parts, 2)).tolist()]


def mask_of(shape: torch.Size, probability: float, keys: list[Key]) -> UInt8[Tensor, "..."]:
    """The mask of these keys, on a CPU: 1 for numbers that stay, 0 for others."""
    if is_planned():
        return torch.empty(shape, dtype=torch.uint8)
    threshold, count = round(probability * _DRAWS), shape.numel()
    stays = np.empty(count, dtype=bool)
    for number, (begins, key) in enumerate(keys):
        part = stays[number * _AT_ONCE : (number + 1) * _AT_ONCE]
        words = -(-len(part) // 4)
        first = begins % (len(_pool()) - words + 1)
        drawn = (_pool()[first : first + words] ^ np.uint64(4 * key + begins % 4)).view(np.uint16)
        np.greater_equal(drawn[: len(part)], threshold, out=part)
    return torch.from_numpy(stays.view(np.uint8)).view(shape)


def dropout_scale(probability: float) -> float:
    """What to multiply the numbers by that a mask of :func:`mask_of` leaves."""
    return _DRAWS / (_DRAWS - round(probability * _DRAWS))


@functools.cache
def _pool() -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Random bits. A mask is made of a part of them, flipped by a key of its own: any two of its numbers are
    independent, and so are any two of two masks."""
    return np.random.Generator(np.random.SFC64(0)).integers(2**64, size=2**20, dtype=np.uint64)
