"""Rotary positions on a CPU with fewer temporaries, in the attention of any family that rotates halves."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2v.kernels.devices import kind_of, with_numbers

_NAME = "apply_rotary_pos_emb"
"""Of the function in the modeling files of transformers, which their attention calls."""
Angles = Float[Tensor, "#batch length width"]


def speed_up_rotary(model: nn.Module) -> None:
    """Have the attention modules that call a function proven to rotate halves call the one of this module."""
    for module in model.modules():
        if not issubclass(type(module), FastRotary):
            kind: Any = type(module)
            fast = _with_fast_rotary(kind)
            if fast is not None:
                module.__class__ = fast


class FastRotary:
    """Marks an attention class whose forward pass calls :func:`rotate`."""


@functools.cache
def _with_fast_rotary(kind: Any) -> type[nn.Module] | None:
    forward: Any = kind.forward
    if not inspect.isfunction(forward) or _NAME not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(_NAME)
    if own is None or not _rotates_halves(own):
        return None

    def rotated(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        return rotate(*given, own=own, **named)

    names = {**forward.__globals__, _NAME: rotated}
    made = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__

    @functools.wraps(forward)
    def fast(*given: Any, **named: Any) -> Any:
        # torch's compiler looks names up in the family's module
        return forward(*given, **named) if torch.compiler.is_compiling() else made(*given, **named)

    return type(f"Fast{kind.__name__}", (FastRotary, kind), {"forward": fast})


def _rotates_halves(own: Callable[..., Any]) -> bool:
    with with_numbers():
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 3, 5, 8), (2, 1, 5, 8), (1, 5, 8), (1, 5, 8))
        query, key, cos, sin = (torch.randn(shape, generator=generator) for shape in shapes)
        try:
            expected = own(query, key, cos, sin)
        except (TypeError, ValueError, RuntimeError):
            return False
        found = (_Rotation.apply(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (query, key))
        return all(
            x.shape == y.shape and torch.allclose(x, y, rtol=1e-5, atol=1e-6)
            for x, y in zip(found, expected, strict=True)
        )


def rotate(
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch groups length width"],
    cos: Angles,
    sin: Angles,
    *given: Any,
    own: Callable[..., tuple[Tensor, Tensor]],
    **named: Any,
) -> tuple[Tensor, Tensor]:
    """x cos + (-second half, first half) sin, of queries and keys; ``own``, the family's function, elsewhere."""
    plain = (
        not given
        and not named
        and all(kind_of(x.device) == "cpu" for x in (query, key, cos, sin))
        # some families rotate a part of each head
        and cos.dim() == 3
        and cos.shape[-1] == query.shape[-1] == key.shape[-1]
        # in 16 bits the family's own rounds more often, and so do those who load the model elsewhere
        and torch.promote_types(query.dtype, cos.dtype).itemsize >= 4
        and not (cos.requires_grad or sin.requires_grad or torch.compiler.is_compiling())
    )
    if not plain:
        return own(query, key, cos, sin, *given, **named)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        x = x.to(torch.promote_types(x.dtype, cos.dtype))  # products of two dtypes are slow
        y = x * cos
        (low, high), (of_low, of_high) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
        first, second = y.chunk(2, dim=-1)
        first.sub_(high * of_low)
        second.add_(low * of_high)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        of_x = gradient * cos
        (low, high), (of_low, of_high) = gradient.chunk(2, dim=-1), sin.chunk(2, dim=-1)
        first, second = of_x.chunk(2, dim=-1)
        first.addcmul_(high, of_high)
        second.addcmul_(low, of_low, value=-1)
        return of_x.to(ctx.dtype), None, None
