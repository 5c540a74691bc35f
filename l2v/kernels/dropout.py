"""Dropout masks that cost next to nothing on a CPU: parts of one pool of random bits, which take no memory.

Where numbers stay, all bits of the mask are set, and none where they are dropped: so a mask is applied by ``and``, at
the speed of memory, where a product of a number of 16 bits with one of a byte takes three times as long.
"""

import functools

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2v.kernels.devices import is_planned

_DRAWS = 2**16
"""On a CPU the probability is rounded to a multiple of 1 / 65,536; the scale that makes up for it is exact."""
_POOL = 2**22
"""Numbers of the pool: 8 MB for a mask of 16-bit numbers, 16 MB for float32."""
_AT_ONCE = 2**21
"""Numbers of a mask at most that come from one place of the pool; larger masks are put together, in memory."""
_MASK_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number."""

Key = int
"""Where in the pool a part of a mask begins."""


def masked(
    x: Float[Tensor, "*shape"], mask: Int[Tensor, "*shape"] | Bool[Tensor, "*shape"] | None, scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """The numbers that stay, and 0 for others, without a gradient; all of them without a mask.

    Args:
        x: the numbers.
        mask: of :func:`mask_of`, or of torch's own dropout, whose kernel for gradients takes it.
        scale: what the numbers are multiplied by as well where the mask is torch's.
    """
    if mask is None:
        return x
    if mask.dtype == torch.bool:
        return torch.ops.aten.native_dropout_backward(x, mask, scale)
    return torch.bitwise_and(x.view(mask.dtype), mask).view(x.dtype)


def mask_in_place(x: Float[Tensor, "*shape"], mask: Int[Tensor, "*shape"] | None) -> Float[Tensor, "*shape"]:
    """The same, written over the numbers; for a mask of :func:`mask_of`."""
    if mask is not None:
        x.view(mask.dtype).bitwise_and_(mask)
    return x


def draw_keys(count: int) -> list[Key]:
    """Of torch's generator, and so of the step's seed: which parts of the pool the masks of ``count`` numbers are."""
    return torch.randint(_POOL - _AT_ONCE + 1, (-(-count // _AT_ONCE),)).tolist()


def mask_of(shape: torch.Size, probability: float, keys: list[Key], dtype: torch.dtype) -> Int[Tensor, "..."]:
    """The mask of these keys for numbers of a dtype, on a CPU. It is not to be written to."""
    kind, count = _MASK_OF[dtype.itemsize], shape.numel()
    if is_planned():
        return torch.empty((), dtype=kind).expand(shape)
    pool = _pool(round(probability * _DRAWS), kind)
    parts = [pool[key : key + min(_AT_ONCE, count - number * _AT_ONCE)] for number, key in enumerate(keys)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


def dropout_scale(probability: float) -> float:
    """What to multiply the numbers by that a mask of :func:`mask_of` leaves."""
    return _DRAWS / (_DRAWS - round(probability * _DRAWS))


@functools.cache
def _pool(dropped: int, kind: torch.dtype) -> Int[Tensor, " pool"]:
    """Masks of single numbers, of which ``dropped`` in 65,536 are 0. A mask is any part of them, so any two of its
    numbers are independent, and so are any two of two masks."""
    drawn = np.random.Generator(np.random.SFC64(0)).integers(_DRAWS, size=_POOL, dtype=np.uint16)
    with torch.inference_mode(False):
        return -torch.from_numpy(drawn >= dropped).to(kind)
