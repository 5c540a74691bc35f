"""The kind of device whose ways a tensor goes: its own, or in a plan that of the device that is planned for."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

_planned: ContextVar[str | None] = ContextVar("planned", default=None)


def kind_of(device: torch.device | str) -> str:
    """cpu, cuda, ...: which of the ways of these kernels is taken."""
    if torch.compiler.is_compiling():
        return torch.device(device).type
    return _planned.get() or torch.device(device).type


def is_planned() -> bool:
    """Whether tensors have shapes only (:mod:`l2v.planning`)."""
    return _planned.get() is not None


def is_whole(weight: object) -> bool:
    """Whether a parameter is all there, in a plan too: none that is split over processes, in 4 bits, or gathered when
    its layer is called (DeepSpeed)."""
    return type(weight) in (nn.Parameter, FakeTensor) and not hasattr(weight, "ds_id")


@contextlib.contextmanager
def planned_for(kind: str) -> Iterator[None]:
    """Meanwhile every tensor goes the ways of this kind of device, with a shape and without numbers."""
    token = _planned.set(kind)
    try:
        yield
    finally:
        _planned.reset(token)


@contextlib.contextmanager
def with_numbers() -> Iterator[None]:
    """Meanwhile new tensors have numbers, in a plan too: to try out what a class or a library computes."""
    with torch.no_grad(), _disable_current_modes(), torch.device("cpu"):
        yield
