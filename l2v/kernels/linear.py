"""Linear layers and LoRA: the faster library on a CPU, and fewer activations everywhere.

On a CPU, torch multiplies float32 matrices with MKL, which leaves AVX-512 alone on processors that are not Intel's.
oneDNN, which torch carries too, does not: twice the speed there. Which of the two is used is measured.

LoRA as PEFT writes it keeps, for each of the seven layers of a block, a dropped copy of the input in float32 and a
mask, and under autocast a copy of that in 16 bits: 7 to 9 bytes a number. Here a layer keeps its input, which others
keep too, and on a GPU a mask of one byte a number.

In 16 bits a sum is rounded where a number ends, so what LoRA adds to the large product of the frozen weight is lost as
long as it is small. Here the large product is added to what LoRA gives, in float32, and rounded once; where a GPU's
library rounds the product before it adds it, which is tried out, training makes one product of both.

Under autocast on a CPU a frozen weight is cast once, not in each pass, and the input of several layers once for all.

With :func:`keep_products`, gradient checkpointing computes no product of these layers a second time.
"""

import contextlib
import fcntl
import functools
import json
import math
import platform
import threading
import time
import weakref
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

from l2v.errors import L2VError
from l2v.kernels.devices import is_planned, is_whole, kind_of, with_numbers
from l2v.kernels.dropout import draw_keys, dropout_scale, mask_in_place, mask_of, masked
from l2v.kernels.gates import Activation, Gated, gradients, multiplied
from l2v.runs.files import cache_folder
from l2v.runs.hashes import settings_hash


class _Now(threading.local):
    """Of this thread: where the products of a checkpointed part go to, or come from, and the last input cast."""

    products: "list[_Product] | None" = None
    kept: "Iterator[_Product] | None" = None
    cast: "_Cast | None" = None


_now = _Now()


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices clearly faster than torch's default (MKL), measured once a machine.

    A choice for all shapes: the two differ by a factor of two, or by less than a tenth at every shape of a model. What
    came out is kept in the cache, where it can be: two processes that measured for themselves could differ, and then
    the last bits of their vectors.
    """
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    with contextlib.suppress(OSError, ValueError, L2VError):
        file = cache_folder("cpu") / f"{settings_hash([processor_name(), torch.__version__])}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+") as kept:
            fcntl.flock(kept, fcntl.LOCK_EX)  # whoever comes while another measures waits for it, some ten milliseconds
            kept.seek(0)
            if text := kept.read():
                return bool(json.loads(text)["onednn_is_faster"])
            found = _onednn_measures_faster()
            json.dump({"processor": processor_name(), "torch": torch.__version__, "onednn_is_faster": found}, kept)
            return found
    return _onednn_measures_faster()


def _onednn_measures_faster() -> bool:
    """By a quarter, so that noise does not decide."""
    seconds = {False: math.inf, True: math.inf}
    with with_numbers(), torch.autocast("cpu", enabled=False):
        x, weight = torch.ones(512, 576), torch.ones(576, 576)
        for _ in range(8):
            for by_onednn, best in seconds.items():
                begin = time.perf_counter()
                _by_onednn(x, weight) if by_onednn else nn.functional.linear(x, weight)
                seconds[by_onednn] = min(best, time.perf_counter() - begin)
    return seconds[False] > 1.25 * seconds[True]


def processor_name() -> str:
    """The processor, as the system calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def product(x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*rows out"]:
    """``x @ weight.T`` without a gradient. Both of one dtype; they may be transposed."""
    if _goes_by_onednn(x):
        # detached: see below, in _forward_of_lora
        return _by_onednn(x, weight).detach()
    return nn.functional.linear(x, weight)


def added_to(
    y: Float[Tensor, "*rows out"], x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"]
) -> Float[Tensor, "*rows out"]:
    """``y + x @ weight.T`` without a gradient, rounded once. It may be written over y, a whole tensor of its own."""
    if _goes_by_onednn(x):
        if is_planned():  # the operation says no shapes
            return _by_onednn(x, weight).add_(y)
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    y.view(-1, y.shape[-1]).addmm_(x.flatten(0, -2), weight.T)
    return y


def _rounds_twice(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`added_to` rounds a product in 16 bits before it adds it; in a plan it may: that takes more."""
    if x.dtype == torch.float32 or kind_of(x.device) == "cpu":
        return False
    return is_planned() or _is_seen_rounding(x.device, x.dtype, *weight.shape)


@functools.cache
def _is_seen_rounding(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
    """The same, tried out with a weight's shape, by which libraries choose their kernels."""
    half = torch.finfo(dtype).eps / 2  # of the last digit of 1
    with torch.inference_mode(False), torch.no_grad():
        x = torch.zeros(1024, inputs, dtype=dtype, device=device)
        x[:, 0], x[:, 1] = 1, half / 2
        weight = torch.zeros(outputs, inputs, dtype=dtype, device=device)
        weight[:, :2] = 1
        y = torch.full((1024, outputs), 0.75 * half, dtype=dtype, device=device)
        return bool((added_to(y, x, weight) == 1).any())  # 1 + 1.25 half, rounded once, is above 1


def _in_one_product(
    x: Tensor, low: Tensor, weight: Tensor, b: Tensor, scale: float, bias: Tensor | None
) -> Float[Tensor, "*rows out"]:
    """bias + x @ weight.T + scale * low @ b.T, summed before anything is rounded."""
    rows = torch.cat((x.flatten(0, -2), low.flatten(0, -2)), dim=1)
    y = nn.functional.linear(rows, torch.cat((weight, b * scale), dim=1), bias)
    return y.view(*x.shape[:-1], len(b))


def _goes_by_onednn(x: Tensor) -> bool:
    return onednn_is_faster() and x.dtype == torch.float32 and kind_of(x.device) == "cpu"


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class FastLinear(nn.Linear):
    """``nn.Linear``, by the faster library where it is on a CPU and in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_float32_on_cpu(input, self.weight) and onednn_is_faster():
            return _Linear.apply(input, self.weight, self.bias)
        if kind_of(input.device) == "cpu" and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
            return nn.functional.linear(input, self.weight_for(torch.get_autocast_dtype("cpu")), self.bias)
        return super().forward(input)

    def weight_for(self, dtype: torch.dtype) -> Tensor:
        """The weight, or its copy in a dtype: on a CPU that of a frozen one is kept until the weight changes."""
        weight = self.weight
        kept_on = kind_of(weight.device) == "cpu" and is_whole(weight)
        if weight.dtype == dtype or weight.requires_grad or weight.is_inference() or not kept_on:
            return weight
        kept: _Cast | None = self.__dict__.get("_copy")
        if kept is None or not kept.is_of(weight, dtype):
            kept = self.__dict__["_copy"] = _Cast(weight, dtype)
        return kept.copy

    def drop_copy(self) -> None:
        """Before the weight is written to without autograd's knowledge."""
        self.__dict__.pop("_copy", None)


class LeanLora(PeftLinear):
    """PEFT's LoRA on a linear layer, with fewer activations kept and, on a CPU, a faster dropout.

    The dropout draws other random numbers than PEFT's, with the same probability. Under autocast all products are of
    its dtype. What is not plain LoRA on a frozen linear layer, or is of several dtypes, goes PEFT's way.
    """

    takes_gated = True
    """Of an MLP, for its last layer: see :class:`l2v.kernels.gates.Gated`."""

    def forward(self, x: Tensor | Gated, *args: Any, **kwargs: Any) -> Tensor:
        given = x.gate if isinstance(x, Gated) else x
        name = None if args or kwargs else self._plain_adapter(given)
        if name is None:
            return super().forward(x.product() if isinstance(x, Gated) else x, *args, **kwargs)
        base: Any = self.base_layer
        device = given.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else given.dtype
        if torch.compiler.is_compiling() and isinstance(x, Tensor):
            up: Any = self.lora_B[name]
            low = self.lora_A[name](self.lora_dropout[name](x))
            if device != "cpu" and dtype != torch.float32:  # nothing can be tried out while a graph is written down
                return _in_one_product(x, low, base.weight, up.weight, self.scaling[name], base.bias)
            y = up(low) * self.scaling[name]  # the smaller one first, see _forward_of_lora
            y = y if base.bias is None else y + base.bias
            return torch.addmm(y.flatten(0, -2), x.flatten(0, -2), base.weight.T).view(y.shape)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        dropout: Any = self.lora_dropout[name]  # nn.Identity for a probability of 0
        probability = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        layer = base.weight_for(dtype), base.bias, a, b, probability, self.scaling[name], torch.is_grad_enabled()
        if isinstance(x, Gated):
            return _LoraOfGated.apply(x.gate, x.up, x.activation, dtype, *layer)
        return _Lora.apply(x, _shared_cast(x, dtype), *layer)

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The one adapter that is on, where it is plain LoRA and goes together with the layer."""
        names = self.active_adapters
        if len(names) != 1 or self.disable_adapters or self.merged_adapters or names[0] not in self.lora_A:
            return None
        name = names[0]
        a: Any = self.lora_A[name]
        plain = self.lora_B[name].bias is None and name not in self.lora_variant
        return name if plain and _goes_together(x, self.base_layer, a.weight) else None

    def merge(self, *args: Any, **kwargs: Any) -> None:
        self._drop_copy()
        super().merge(*args, **kwargs)

    def unmerge(self) -> None:
        self._drop_copy()
        super().unmerge()

    def _drop_copy(self) -> None:
        if isinstance(self.base_layer, FastLinear):
            self.base_layer.drop_copy()


def speed_up_linears(model: nn.Module) -> None:
    """Give a model's linear layers and LoRA layers the forward passes of this module. Their names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
        elif type(module) is PeftLinear:
            module.__class__ = LeanLora


class _Cast:
    """A copy of a tensor in another dtype, and what it was made of: no tensor of inference mode."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):  # a copy that a validation makes is used in training
            self.copy = x.detach().to(dtype)
        self._source, self._version = weakref.ref(x), x._version

    def is_of(self, x: Tensor, dtype: torch.dtype) -> bool:
        return self._source() is x and self._version == x._version and self.copy.dtype == dtype


def _shared_cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a dtype, without its gradient. Layers that follow each other on one input share the copy.

    Not in inference mode, in which a tensor does not say whether it was written to.
    """
    if x.dtype == dtype:
        return x.detach()
    if x.is_inference():
        return x.to(dtype)
    if _now.cast is None or not _now.cast.is_of(x, dtype):
        _now.cast = _Cast(x, dtype)
    return _now.cast.copy


def _is_float32_on_cpu(*tensors: Tensor) -> bool:
    """Without autocast, and not while torch writes down a graph (torch.compile, ONNX)."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(kind_of(tensor.device) == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def _goes_together(x: Tensor, base: object, a: Tensor) -> bool:
    """Whether a LoRA is on a frozen linear layer, on one device, and of one dtype, or of those that autocast takes."""
    if not isinstance(base, FastLinear):
        return False
    weight, bias = base.weight, base.bias
    if bias is not None and bias.requires_grad:  # as PEFT's bias="lora_only" has it
        return False
    # DeepSpeed gathers the weights of a layer when it is called
    if weight.requires_grad or hasattr(weight, "ds_id") or not x.device == weight.device == a.device:
        return False
    if torch.is_autocast_enabled(x.device.type):
        return x.dtype in _AUTOCAST and weight.dtype in _AUTOCAST and a.dtype in _AUTOCAST
    return weight.dtype == x.dtype == a.dtype


_AUTOCAST = {torch.float32, torch.bfloat16, torch.float16}


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
    """y = x W' + bias + scale * (dropped(x) A') B', in the dtype of ``cast``, which is x; W and the bias are frozen.

    Autocast, where it is on, finds nothing to cast in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Tensor, *layer: Any) -> Tensor:
        y, *kept = _forward_of_lora(ctx, x.dtype, cast, *layer)
        ctx.save_for_backward(cast, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with _without_autocast(gradient.device.type):
            of_x, of_a, of_b = _backward_of_lora(ctx, gradient, *ctx.saved_tensors)
        return of_x, None, None, None, of_a, of_b, None, None, None


class _LoraOfGated(torch.autograd.Function):
    """The same of x = activation(gate) times up, from which it is computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation, dtype: torch.dtype, *layer: Any) -> Tensor:
        ctx.activation = activation
        x = _in(multiplied(gate, up, activation), dtype)
        y, *kept = _forward_of_lora(ctx, gate.dtype, x, *layer)
        ctx.save_for_backward(gate, up, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *kept = ctx.saved_tensors
        with _without_autocast(gradient.device.type):
            activated = ctx.activation.forward(gate)
            of_x, of_a, of_b = _backward_of_lora(ctx, gradient, _in(activated * up, kept[0].dtype), *kept)
            of_gate, of_up = None, None
            if of_x is not None:
                of_gate, of_up = gradients(of_x, gate, up, ctx.activation, activated)
        return of_gate, of_up, None, None, None, None, of_a, of_b, None, None, None


def _without_autocast(device: str) -> AbstractContextManager[None]:
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _forward_of_lora(
    ctx: Any,
    given: torch.dtype,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    probability: float,
    scale: float,
    trains: bool,
) -> tuple[Any, ...]:
    """y, and what :func:`_backward_of_lora` needs beside x, which was ``given`` in a dtype."""
    ctx.dtypes = given, a.dtype, b.dtype
    weight, a, b = (_in(matrix, x.dtype) for matrix in (weight, a, b))
    dropped, stays, mask, ctx.of_kept, ctx.drawn = x, None, None, 1.0, None
    if probability > 0:
        if kind_of(x.device) == "cpu":
            drawn = draw_keys(x.numel())
            stays = mask_of(x.shape, probability, drawn, x.dtype)
            scale, ctx.drawn = scale * dropout_scale(probability), (probability, drawn)
        else:
            dropped, mask = torch.native_dropout(x, probability, True)
            ctx.of_kept = 1 / (1 - probability)
    found = None if _now.kept is None else next(_now.kept).get()
    if found is None:
        low = product(masked(dropped, stays), a).flatten(0, -2)
        if trains and _rounds_twice(x, weight):
            y = _in_one_product(x, low, weight, b, scale, bias)
        else:
            # the large product is added to the small one: the other way around, a step that changes y by less than
            # half of its last digit would be lost
            y = added_to(_scaled(low, b, scale, bias).view(*x.shape[:-1], len(b)), x, weight)
        y = y.detach()  # it is a view, and a model may not write into views
        if _now.products is not None:
            _now.products.append(_Product(y, low))
    else:
        y, low = found
    ctx.scale = scale
    return y, weight, a, b, mask, low


def _backward_of_lora(
    ctx: Any, gradient: Tensor, cast: Tensor, weight: Tensor, a: Tensor, b: Tensor, mask: Tensor | None, low: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x, which is ``cast``, A and B."""
    of_x_dtype, of_a_dtype, of_b_dtype = ctx.dtypes
    of_x, wanted = None, any(ctx.needs_input_grad[:2])  # of x, or of what it is made of: gate and up
    gradient = _in(gradient, cast.dtype)
    rows = gradient.flatten(0, -2)
    if ctx.drawn is not None:  # a mask of several parts takes memory
        probability, drawn = ctx.drawn
        mask = mask_of(cast.shape, probability, drawn, cast.dtype)
    dropped = masked(cast, mask, ctx.of_kept).flatten(0, -2)
    of_low = _scaled(rows, b.T, ctx.scale)
    if kind_of(cast.device) == "cpu":
        of_a = product(of_low.T, dropped.T)
        of_b = product(low.T, rows.T).T.mul_(ctx.scale)
        if wanted:
            of_x = mask_in_place(product(of_low, a.T).view(cast.shape), mask)
    else:
        # fewer and shorter calls: on a GPU a small model waits for them
        of_a = torch.mm(of_low.T, dropped)
        of_b = torch.addmm(rows.new_empty(()), rows.T, low, beta=0, alpha=ctx.scale)
        if wanted:
            of_x = torch.mm(of_low, a).view(cast.shape)
            if mask is not None:
                of_x = masked(of_x, mask, ctx.of_kept)
    if of_x is not None:
        of_x = _in(added_to(of_x, gradient, weight.T), of_x_dtype)
    return of_x, _in(of_a, of_a_dtype), _in(of_b, of_b_dtype)


def _scaled(x: Tensor, weight: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """bias + scale * x @ weight.T."""
    if _goes_by_onednn(x):
        return _add(product(x, weight * scale), bias)
    if bias is None:
        return torch.addmm(x.new_empty(()), x, weight.T, beta=0, alpha=scale)
    return torch.addmm(_in(bias, x.dtype), x, weight.T, alpha=scale)


def _in(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In a dtype; the call alone takes a microsecond."""
    return x if x.dtype == dtype else x.to(dtype)


def _add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)
