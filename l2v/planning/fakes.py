"""Tensors with a shape and without numbers: what a model's weights and states are in a plan.

Token ids, masks, labels and counts are few, and what a step does depends on them (which tokens are hidden, whether a
batch has padding). They stay real. Floating point numbers are fake (torch's ``FakeTensorMode``) from the first, so that
a model of any size runs in no memory.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from l2v.planning.ledger import Kind, Ledger

_aten = torch.ops.aten
_REAL = (torch.int64, torch.int32, torch.bool)
"""Of numbers that are computed with; others, such as dropout masks, are as large as states."""
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention: 2,
    _aten._scaled_dot_product_efficient_attention: 2,
    _aten._scaled_dot_product_flash_attention_for_cpu: 2,
    _aten._scaled_dot_product_flash_attention_backward: 5,
    _aten._scaled_dot_product_efficient_attention_backward: 5,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}
"""Products of pairs of tokens; a backward pass computes the first again."""
_SENT = {
    torch.ops.c10d._allgather_base_.default: 0,
    torch.ops.c10d._reduce_scatter_base_.default: 1,
    torch.ops.c10d.allreduce_.default: 0,
    torch.ops.c10d.allgather_.default: 0,
}
"""Collectives, and which of their arguments is as large as all ranks' parts together."""


class Fakes(TorchDispatchMode):
    """Runs what is called in it on shapes, and keeps the books: memory, products and what goes between processes.

    Args:
        ledger: where new tensors are noted.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.kind: Kind = "activations"
        """What new tensors are."""
        self.is_scores: Callable[[torch.Size], bool] = lambda shape: False
        """Whether a tensor of this shape holds scores, of tokens or of documents."""
        self.flops = 0
        self.sent = 0
        """Bytes that collectives bring together."""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> "Fakes":
        resize, ledger = self._resize, self.ledger

        def noted(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            ledger.resize(storage)
            return result

        torch.UntypedStorage.resize_ = noted  # type: ignore[assignment,method-assign]  # FSDP2 frees weights so; no operation tells
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def materialize(self, module: nn.Module) -> None:
        """Give what a module still has on ``meta`` fake tensors on the device; tied weights stay tied."""
        made: dict[Tensor, nn.Parameter] = {}
        buffers: list[Tensor] = []
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None and weight.is_meta:
                    if weight not in made:
                        made[weight] = nn.Parameter(self._empty(weight), requires_grad=weight.requires_grad)
                    part._parameters[name] = made[weight]
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_meta:
                    buffers.append(self._empty(buffer))
                    part._buffers[name] = buffers[-1]
        self.ledger.move([*made.values(), *buffers], "weights")

    def _empty(self, like: Tensor) -> Tensor:
        with contextlib.nullcontext() if self in _get_current_dispatch_mode_stack() else self:
            return torch.empty(like.shape, dtype=like.dtype, device="cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # it comes again, with the part that is here
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return func(*args, **kwargs)  # DTensor works out a layout
        given = _tensors(args, kwargs.values())
        has_fakes = any(isinstance(one, FakeTensor) for one in given)
        if func is _aten._local_scalar_dense.default and has_fakes:
            return True if given[0].dtype == torch.bool else 1.0 if given[0].is_floating_point() else 1
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]
        if func is _aten.index.Tensor and has_fakes:
            args = (args[0], _numbers(args[1]))
        if has_fakes or not (given or kwargs.get("dtype") in _REAL):
            with self._mode:
                result = func(*args, **kwargs)
        else:
            result = tree_map_only(Tensor, lambda made: self._faked(made, given), func(*args, **kwargs))
        self.flops += _flops(func, args, kwargs, result)
        if func in _SENT:
            self.sent += sum(one.nbytes for one in _tensors((args[_SENT[func]],)))
        for made in _tensors((result,)):
            is_scores = self.kind == "activations" and made.is_floating_point() and self.is_scores(made.shape)
            self.ledger.note(made, "scores" if is_scores else self.kind)
        return result

    def _faked(self, made: Tensor, given: list[Tensor]) -> Tensor:
        """Floating point numbers that real ones became; a change in place stays one."""
        if not made.is_floating_point() or any(made is one for one in given):
            return made
        return self._mode.from_tensor(made)


def _tensors(*groups: Iterable[Any]) -> list[Tensor]:
    """Those of arguments or results, also in lists: each operation asks, and torch's own way takes longer than it."""
    found: list[Tensor] = []
    for group in groups:
        for one in group:
            if isinstance(one, Tensor):
                found.append(one)
            elif isinstance(one, list | tuple):
                found += _tensors(one)
    return found


def _numbers(indices: Any) -> list[Tensor | None]:
    """Real masks among indices as the places where they are true."""
    found: list[Tensor | None] = []
    for one in indices:
        is_mask = one is not None and one.dtype == torch.bool and not isinstance(one, FakeTensor)
        found += one.nonzero(as_tuple=True) if is_mask else [one]
    return found


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Of products of matrices, two for each multiplication."""
    packet = func._overloadpacket
    if packet in _ATTENTION:
        queries, keys = (args[1], args[2]) if "backward" in str(packet) else (args[0], args[1])
        *rows, length, width = queries.shape
        return 2 * _ATTENTION[packet] * math.prod(rows) * length * keys.shape[-2] * width
    if packet is _aten.addmm_:
        packet = _aten.addmm
    if packet is torch.ops.mkldnn._linear_pointwise:
        return 2 * args[0].numel() * args[1].shape[0]
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=result) if count is not None else 0


@contextlib.contextmanager
def attention_of_gpus() -> Iterator[None]:
    """Meanwhile ``scaled_dot_product_attention`` is what a GPU runs: torch goes by where a tensor is.

    Without a mask and in 16 bits it is flash attention, else the memory-efficient one, which takes a mask as numbers.
    A ``TorchFunctionMode`` would not do: it is off in a backward pass, where layers may run again.
    """
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _on_gpu
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def _on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is None and query.dtype.itemsize == 2:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
