"""Gated MLPs (SwiGLU, GEGLU) that keep the gate and what it is multiplied by for the backward pass, and nothing else.

A family's own class keeps the activated gate as well, and a LoRA after it the product of the two: half of what an MLP
keeps. Here the backward pass computes both again, of the two that are kept. The numbers are the family's own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2v.kernels.devices import with_numbers

Layers = Literal["gate_proj, up_proj", "gate_up_proj"]
"""What the linear layers before the gate are called: Llama's and most others', and Phi-3's, which is one."""
_ACTIVATIONS = ("act_fn", "activation_fn")


@dataclass(frozen=True)
class Activation:
    """A function of single numbers."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    """Of its result's gradient and what it was given."""


def _gelu(form: str) -> Activation:
    backward = torch.ops.aten.gelu_backward
    return Activation(partial(nn.functional.gelu, approximate=form), partial(backward, approximate=form))


_CANDIDATES = (Activation(nn.functional.silu, torch.ops.aten.silu_backward), _gelu("tanh"), _gelu("none"))


@dataclass(frozen=True, eq=False)
class Gated:
    """activation(gate) times up, not multiplied yet: for a layer that keeps the two and not their product."""

    gate: Float[Tensor, "*rows width"]
    up: Float[Tensor, "*rows width"]
    activation: Activation

    def product(self) -> Float[Tensor, "*rows width"]:
        """With a gradient."""
        return _Gated.apply(self.gate, self.up, self.activation)


class FastGate(nn.Module):
    """Beside a family's own class of MLP, whose place it takes."""

    layers: Layers
    activation: Activation

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or any(map(_is_hooked, _activations(self))):
            return super().forward(x)
        gated, last = _gated(self, x, self.activation), cast(nn.Module, self.down_proj)
        # whoever hooks into a layer expects a tensor
        whole = not getattr(last, "takes_gated", False) or _is_hooked(last)
        return last(gated.product() if whole else gated)


def speed_up_gates(model: nn.Module) -> None:
    """Give the MLPs that are proven to be gated ones the forward pass of this module."""
    for module in model.modules():
        if not isinstance(module, FastGate):
            found = _form(module)
            if found is not None:
                kind: Any = type(module)
                module.__class__ = _fast(kind, *found)


def multiplied(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) times up, without a gradient."""
    y = activation.forward(gate)
    return y.mul_(up) if y.dtype == up.dtype else y * up


def gradients(
    of_product: Tensor, gate: Tensor, up: Tensor, activation: Activation, activated: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the gate and of what it is multiplied by; ``activated``, the activated gate, is written to."""
    of_gate = activation.backward((of_product * up).to(gate.dtype), gate)
    return of_gate, activated.mul_(of_product) if activated.dtype == up.dtype else activated * of_product


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return multiplied(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return *gradients(gradient, gate, up, ctx.activation, ctx.activation.forward(gate)), None


def _gated(module: Any, x: Tensor, activation: Activation) -> Gated:
    if module.layers == "gate_up_proj":
        gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
        return Gated(gate, up, activation)
    return Gated(module.gate_proj(x), module.up_proj(x), activation)


def _activations(module: nn.Module) -> list[nn.Module]:
    """The module that a family's own class activates the gate with; none where it is a function."""
    found = (module._modules.get(name) for name in _ACTIVATIONS)
    return [one for one in found if one is not None]


def _is_hooked(module: nn.Module) -> bool:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _form(module: nn.Module) -> tuple[Layers, Activation] | None:
    """Which layers an MLP has and what it computes of its gate, as seen on random numbers; None: something else."""
    names = set(module._modules) - set(_ACTIVATIONS)
    if module._parameters:
        return None
    layers: tuple[Layers, ...] = ("gate_proj, up_proj", "gate_up_proj")
    for one in layers:
        if names == {"down_proj", *one.split(", ")}:
            return next(((one, act) for act in _CANDIDATES if _computes(module, one, act)), None)
    return None


def _computes(module: nn.Module, layers: Layers, activation: Activation) -> bool:
    """Whether an MLP with small layers in the place of its own gives the very numbers of this one, in training."""
    given, width = 6, 10
    with with_numbers():
        generator = torch.Generator().manual_seed(0)

        def layer(inputs: int, outputs: int) -> nn.Module:
            made = nn.Linear(inputs, outputs, bias=False, device="meta")
            made.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator))
            return made

        wide = {name: layer(given, 2 * width if name == "gate_up_proj" else width) for name in layers.split(", ")}
        own: Any = copy.copy(module)
        own._modules = {**module._modules, **wide, "down_proj": layer(width, given)}
        own.training, own.layers = True, layers
        # small and large ones: some families clip
        x = torch.randn(1, 64, given, generator=generator) * torch.logspace(-2, 3, 64).unsqueeze(1)
        try:
            expected = type(module).forward(own, x)
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False
        found = own.down_proj(_gated(own, x, activation).product())
        return isinstance(expected, Tensor) and torch.equal(found, expected)


@cache
def _fast(kind: Any, layers: Layers, activation: Activation) -> type[nn.Module]:
    return type(f"Fast{kind.__name__}", (FastGate, kind), {"layers": layers, "activation": activation})
