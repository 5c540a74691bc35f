"""The room that there is: a GPU's memory and rate, and what is kept free of it."""

import os
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: the group ``gpu``."""

    memory_gib: Annotated[float, Gt(0)]
    """GiB that torch sees."""
    tflops: Annotated[float, Gt(0)]
    """Dense products of 16-bit numbers, TFLOP/s."""
    tflops_float32: Annotated[float, Gt(0)]
    """Of float32, without TF32."""

    def rate(self, precision: str) -> float:
        """TFLOP/s in a precision of Lightning's."""
        return self.tflops_float32 if precision.startswith("32") else self.tflops


@dataclass(frozen=True)
class Room:
    """What one process has."""

    memory_gib: float
    tflops: float | None
    """None: not known, as of a CPU."""
    utilisation: float
    """Share of the rate that a step reaches."""
    reserve_gib: float = 0.0
    """Of the memory: what CUDA and its libraries take."""
    fragmentation: float = 0.0
    """Share of the tensors' memory that is lost between them."""

    @property
    def tensors(self) -> int:
        """Bytes of tensors that fit."""
        return int((self.memory_gib - self.reserve_gib) * GIB / (1 + self.fragmentation))

    def seconds(self, flops: float) -> float | None:
        """Of a step."""
        return None if self.tflops is None else flops / (self.tflops * 1e12 * self.utilisation)


def memory_of_this_machine() -> float:
    """GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
