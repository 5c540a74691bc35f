"""RMS norms with fewer temporaries: what the backward pass needs is the input and one number a row.

On a CPU by the operations of this module, on a GPU by torch's kernel, one forward and two backward where the families'
own classes run eight and fourteen. It rounds once, at the end; most families round before they multiply by the weight
too, which is a difference in 16 bits only.
"""

import copy
import functools
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2v.kernels.devices import is_planned, is_whole, kind_of, with_numbers

Form = Literal["weight", "1 + weight"]
"""What a family multiplies the normalised numbers by: Llama and most others, and Gemma."""


class FastNorm(nn.Module):
    """Beside a family's own class of norm, whose place it takes on a CPU and on CUDA."""

    form: Form

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = cast(Tensor, self.weight)
        kind = kind_of(hidden_states.device)
        plain = kind == kind_of(weight.device) and is_whole(weight) and not torch.compiler.is_compiling()
        by_torch = kind == "cuda" and self.form == "weight" and hidden_states.dtype == weight.dtype
        if plain and by_torch and not is_planned():
            with torch.autocast("cuda", enabled=False):
                return nn.functional.rms_norm(hidden_states, weight.shape, weight, _epsilon(self))
        if plain and (kind == "cpu" or by_torch):  # in a plan: torch's kernel keeps what this one does
            return _Norm.apply(hidden_states, weight, _epsilon(self), self.form)
        return super().forward(hidden_states)


def speed_up_norms(model: nn.Module) -> None:
    """Give the RMS norms whose class is proven to compute one the forward pass of this module."""
    for module in model.modules():
        if isinstance(module, FastNorm) or not _looks_like_a_norm(module):
            continue
        kind: Any = type(module)
        if kind not in _forms:
            _forms[kind] = _form(module)
        form = _forms[kind]
        if form is not None:
            module.__class__ = _fast(kind, form)


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) times the weight, in float32, rounded where the families round."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, form: Form) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(dim=-1, keepdim=True).add_(epsilon).rsqrt_()
        y = wide * scale
        ctx.save_for_backward(x, weight, scale)
        ctx.form = form
        if form == "1 + weight":
            return y.mul_(_factor(weight, form)).to(x.dtype)
        if x.dtype == weight.dtype == torch.float32:
            return y.mul_(weight)
        return y.to(x.dtype) * weight

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide, of_y = x.float(), gradient.float()
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (of_y * wide).mul_(scale).flatten(0, -2).sum(dim=0).to(weight.dtype)
        of_x = of_y * _factor(weight, ctx.form)
        along = torch.linalg.vecdot(of_x, wide).unsqueeze(-1).mul_(scale).mul_(scale).div_(x.shape[-1])
        of_x.addcmul_(wide, along, value=-1).mul_(scale)
        return of_x.to(x.dtype), of_weight, None, None


def _factor(weight: Tensor, form: Form) -> Float[Tensor, " width"]:
    return weight.float() if form == "weight" else weight.float() + 1


def _epsilon(module: nn.Module) -> float:
    return cast(float, getattr(module, "variance_epsilon", None) or getattr(module, "eps", None))


def _looks_like_a_norm(module: nn.Module) -> bool:
    weights = dict(module.named_parameters())
    return (
        type(module).__name__.endswith("RMSNorm")
        and list(weights) == ["weight"]
        and weights["weight"].dim() == 1
        and isinstance(_epsilon(module), float)
    )


_forms: dict[Any, Form | None] = {}
"""By class: which form it was seen to compute."""


def _form(module: nn.Module) -> Form | None:
    """Which form a norm computes, as seen on random numbers; None: another."""
    norm = copy.copy(module)
    width = cast(Tensor, norm.weight).numel()
    with with_numbers():
        generator = torch.Generator().manual_seed(0)
        weight, x = (torch.randn(rows, width, generator=generator) for rows in (1, 3))
        norm._parameters = {"weight": nn.Parameter(weight[0])}
        expected = norm(x)
        forms: tuple[Form, ...] = ("weight", "1 + weight")
        for form in forms:
            found = _Norm.apply(x, weight[0], _epsilon(norm), form)
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                return form
    return None


@functools.cache
def _fast(kind: Any, form: Form) -> type[nn.Module]:
    return type(f"Fast{kind.__name__}", (FastNorm, kind), {"form": form})
