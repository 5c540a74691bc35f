"""Linear layers and LoRA on a CPU, in float32: the faster library, and fewer activations.

torch multiplies float32 matrices with MKL, which leaves AVX-512 alone on processors that are not Intel's. oneDNN, which
torch carries too, does not: twice the speed there. And LoRA as PEFT writes it keeps, for each of the seven layers of a
block, a dropped copy of the input and a float mask of its size; here a layer keeps its input, which others keep too,
and a mask of one byte a number.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_DRAWS = 2**16
"""Dropout's probability is rounded to a multiple of 1 / 65,536; the scale that makes up for it is exact."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than torch's default: AVX-512, and not by Intel."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    information = Path("/proc/cpuinfo")
    return information.exists() and "GenuineIntel" not in information.read_text(encoding="utf-8", errors="replace")


def product(x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*rows out"]:
    """``x @ weight.T`` without a gradient. Float32 on the CPU; the tensors may be transposed."""
    if onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return torch.nn.functional.linear(x, weight)


def dropout_mask(shape: torch.Size, probability: float) -> tuple[UInt8[Tensor, "..."], float]:
    """1 for numbers that stay, 0 for others, and what to multiply by: 1 / (the share that stays, in the mean).

    A tenth of the time of ``Tensor.bernoulli_``: torch's generator, and so the step's seed, gives the seed of another.
    """
    threshold = round(probability * _DRAWS)
    seed = int(torch.randint(2**62, ()))
    count = shape.numel()
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy((drawn >= threshold).view(np.uint8)).view(shape), _DRAWS / (_DRAWS - threshold)


class FastLinear(nn.Linear):
    """``nn.Linear``, by the faster library where it is on a CPU and in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if onednn_is_faster() and _plain(input, self.weight):
            return _Linear.apply(input, self.weight, self.bias)
        return super().forward(input)


class LeanLora(PeftLinear):
    """PEFT's LoRA on a linear layer, with fewer activations kept and a faster dropout, on a CPU and in float32.

    The dropout draws other random numbers than PEFT's, with the same probability.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = self.active_adapters
        if args or kwargs or len(names) != 1 or not self._is_plain(names[0], x):
            return super().forward(x, *args, **kwargs)
        name, base = names[0], self.base_layer
        dropout: Any = self.lora_dropout[name]  # nn.Identity for a probability of 0
        drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and self.training
        mask, scale = dropout_mask(x.shape, dropout.p) if drops else (None, 1.0)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Lora.apply(x, base.weight, base.bias, a, b, mask, self.scaling[name] * scale)

    def _is_plain(self, name: str, x: Tensor) -> bool:
        base = self.base_layer
        return (
            not (self.disable_adapters or self.merged)
            and name in self.lora_A
            and name not in self.lora_variant
            and self.lora_B[name].bias is None
            and isinstance(base, FastLinear)
            and not base.weight.requires_grad
            and _plain(x, base.weight)
            and _plain(x, self.lora_A[name].weight)
        )


def speed_up(model: nn.Module) -> None:
    """Give a model's linear layers and LoRA layers the forward passes of this module. Their names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
        elif type(module) is PeftLinear:
            module.__class__ = LeanLora


def _plain(*tensors: Any) -> bool:
    """On the CPU, in float32, without autocast, and not while torch writes down a graph (torch.compile, ONNX)."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _add(product(x, weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.T) if of_x else None,
            product(rows.T, x.flatten(0, -2).T) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


class _Lora(torch.autograd.Function):
    """y = x W' + bias + scale * ((x * mask) A') B'; W and the bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        low = product(x if mask is None else x * mask, a).flatten(0, -2)
        y = _add(product(x, weight), bias)
        y.view(-1, y.shape[-1]).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, mask, low)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, mask, low = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_low = product(rows, b.T).mul_(ctx.scale)
        of_a = of_low.T @ (x if mask is None else x * mask).flatten(0, -2)
        of_b = (rows.T @ low).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(gradient, weight.T)
            through_a = product(of_low, a.T).view_as(of_x)
            of_x.add_(through_a if mask is None else through_a.mul_(mask))
        return of_x, None, None, of_a, of_b, None, None


def _add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)
