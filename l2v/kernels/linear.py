"""Linear layers and LoRA: the faster library on a CPU, and fewer activations everywhere.

On a CPU, torch multiplies float32 matrices with MKL, which leaves AVX-512 alone on processors that are not Intel's.
oneDNN, which torch carries too, does not: twice the speed there.

LoRA as PEFT writes it keeps, for each of the seven layers of a block, a dropped copy of the input in float32 and a
mask, and under autocast a copy of that in 16 bits: 7 to 9 bytes a number. Here a layer keeps its input, which others
keep too, and a mask of one byte a number.

With :func:`keep_products`, gradient checkpointing computes no product of these layers a second time.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2v.kernels.devices import kind_of
from l2v.kernels.dropout import dropout_mask, masked


class _Now(threading.local):
    """Of this thread: where the products of a checkpointed part go to, or come from."""

    products: "list[_Product] | None" = None
    kept: "Iterator[_Product] | None" = None


_now = _Now()


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than torch's default: AVX-512, and not by Intel."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    information = Path("/proc/cpuinfo")
    return information.exists() and "GenuineIntel" not in information.read_text(encoding="utf-8", errors="replace")


def product(x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*rows out"]:
    """``x @ weight.T`` without a gradient. Both of one dtype; they may be transposed."""
    if onednn_is_faster() and x.dtype == torch.float32 and kind_of(x.device) == "cpu":
        y = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return y.detach()  # it is a view of itself as a matrix, and a model may not write into views
    return torch.nn.functional.linear(x, weight)


class FastLinear(nn.Linear):
    """``nn.Linear``, by the faster library where it is on a CPU and in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_float32_on_cpu(input, self.weight) and onednn_is_faster():
            return _Linear.apply(input, self.weight, self.bias)
        return super().forward(input)


class LeanLora(PeftLinear):
    """PEFT's LoRA on a linear layer, with fewer activations kept and, on a CPU, a faster dropout.

    The dropout draws other random numbers than PEFT's, with the same probability. Under autocast all products are of
    its dtype. What is not plain LoRA on a frozen linear layer, or is of several dtypes, goes PEFT's way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x, *args, **kwargs)
        names = self.active_adapters
        if args or kwargs or len(names) != 1 or not self._is_plain(names[0], x):
            return super().forward(x, *args, **kwargs)
        name, base = names[0], self.base_layer
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        dropout: Any = self.lora_dropout[name]  # nn.Identity for a probability of 0
        drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and self.training
        mask, scale = dropout_mask(x.shape, dropout.p, x.device) if drops else (None, 1.0)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Lora.apply(x, base.weight, base.bias, a, b, mask, self.scaling[name] * scale, dtype)

    def _is_plain(self, name: str, x: Tensor) -> bool:
        base = self.base_layer
        return (
            not (self.disable_adapters or self.merged)
            and name in self.lora_A
            and name not in self.lora_variant
            and self.lora_B[name].bias is None
            and isinstance(base, FastLinear)
            and not base.weight.requires_grad
            # DeepSpeed gathers the weights of a layer when it is called
            and not hasattr(base.weight, "ds_id")
            and _fit(x, base.weight, self.lora_A[name].weight)
        )


def speed_up(model: nn.Module) -> None:
    """Give a model's linear layers and LoRA layers the forward passes of this module. Their names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
        elif type(module) is PeftLinear:
            module.__class__ = LeanLora


def _is_float32_on_cpu(*tensors: Tensor) -> bool:
    """Without autocast, and not while torch writes down a graph (torch.compile, ONNX)."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(kind_of(tensor.device) == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def _fit(x: Tensor, *weights: Any) -> bool:
    """Whether they can be multiplied: on one device, and of one dtype, or of the dtypes that autocast takes."""
    if any(weight.device != x.device for weight in weights):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return all(tensor.is_floating_point() and tensor.dtype != torch.float64 for tensor in (x, *weights))
    return all(weight.dtype == x.dtype for weight in weights)


def keep_products() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` of ``torch.utils.checkpoint``: what the LoRA layers give is kept, all between them computed again.

    That is a third of the activations of a Llama block, and next to none of its time: norms, rotary embeddings,
    attention, activation functions and dropout masks.
    """
    products: list[_Product] = []
    return _Run(products, second=False), _Run(products, second=True)


class _Product:
    """What a LoRA layer gave, unless the model has written over it."""

    def __init__(self, y: Tensor, low: Tensor) -> None:
        self._y, self._low = y.detach(), low
        self._version = y._version

    def get(self) -> tuple[Tensor, Tensor] | None:
        return (self._y.detach(), self._low) if self._y._version == self._version else None


@dataclass(frozen=True)
class _Run(AbstractContextManager[None]):
    """The first run of a checkpointed part, which fills ``products``, or a second one, which takes them."""

    products: list[_Product]
    second: bool

    def __enter__(self) -> None:
        if self.second:
            _now.kept = iter(self.products)
        else:
            _now.products = self.products

    def __exit__(self, *error: object) -> None:
        _now.kept = _now.products = None


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
    """y = x W' + bias + scale * ((x * mask) A') B', in ``dtype``; W and the bias are frozen."""

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
        dtype: torch.dtype,
    ) -> Tensor:
        found = None if _now.kept is None else next(_now.kept).get()
        if found is None:
            with torch.autocast(x.device.type, enabled=False):
                cast = x.to(dtype)
                y = _add(product(cast, weight.to(dtype)), bias)
                low = product(masked(cast, mask), a.to(dtype)).flatten(0, -2)
                y.view(-1, y.shape[-1]).addmm_(low, b.to(dtype).T, alpha=scale)
            if _now.products is not None:
                _now.products.append(_Product(y, low))
        else:
            y, low = found
        # not the copies: x and the weight are kept anyhow
        ctx.save_for_backward(x, weight, a, b, mask, low)
        ctx.scale, ctx.dtype = scale, dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, mask, low = ctx.saved_tensors
        dtype = ctx.dtype
        with torch.autocast(x.device.type, enabled=False):
            gradient, cast = gradient.to(dtype), x.to(dtype)
            rows = gradient.flatten(0, -2)
            of_low = product(rows, b.to(dtype).T).mul_(ctx.scale)
            of_a = product(of_low.T, masked(cast, mask).flatten(0, -2).T)
            of_b = product(low.T, rows.T).T.mul_(ctx.scale)
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = product(gradient, weight.to(dtype).T)
                through_a = product(of_low, a.to(dtype).T).view_as(of_x)
                of_x.add_(masked(through_a, mask))
                of_x = of_x.to(x.dtype)
        return of_x, None, None, of_a.to(a.dtype), of_b.to(b.dtype), None, None, None


def _add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)
