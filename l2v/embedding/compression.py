"""Vectors in fewer bytes: float16, int8 by ranges, one bit a dimension."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

StoredType = Literal["float32", "float16", "int8", "binary"]
_STEPS = 255
"""Between the lowest and the highest of 256 codes."""
_LOWEST = -128


@dataclass(frozen=True)
class Ranges:
    """The smallest and the largest value of each dimension, over a sample: what int8 codes are spread over.

    Codes are those of ``quantize_embeddings`` of sentence-transformers 6.2 with the same ranges: steps of
    (high - low) / 255 from low, rounded down, and a value outside of the range gets the code of its end.
    """

    low: NDArray[np.float32]
    """(dimension,)"""
    high: NDArray[np.float32]

    @staticmethod
    def of(vectors: NDArray[np.float32]) -> "Ranges":
        """The ranges of (rows, dimension) vectors."""
        return Ranges(vectors.min(axis=0), vectors.max(axis=0))

    def join(self, other: "Ranges | None") -> "Ranges":
        """The ranges of both samples together."""
        if other is None:
            return self
        return Ranges(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def codes(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        """(rows, dimension) int8 codes of vectors."""
        step = self._step()
        places = np.floor((vectors - self.low) / np.where(step > 0, step, np.float32(1)))
        return (places.clip(0, _STEPS) + _LOWEST).astype(np.int8)

    def values(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """The middle of each code's step: within half a step of the vector, where that lies inside of the ranges."""
        return self.low + (codes.astype(np.float32) - _LOWEST + np.float32(0.5)) * self._step()

    def _step(self) -> NDArray[np.float32]:
        return (self.high - self.low) / np.float32(_STEPS)

    def record(self) -> dict[str, list[float]]:
        """As JSON holds it, without loss."""
        return {"low": self.low.astype(float).tolist(), "high": self.high.astype(float).tolist()}

    @staticmethod
    def read(record: dict[str, Any]) -> "Ranges":
        return Ranges(*(np.array(record[end], np.float32) for end in ("low", "high")))


def bits(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One bit a dimension, 1 where it is above 0, 8 to a byte with the first in the highest bit.

    (rows, dimension) -> (rows, dimension / 8 rounded up); the bits that are left over are 0. sentence-transformers
    calls this ubinary.
    """
    return np.packbits(vectors > 0, axis=1)


def signs(packed: NDArray[np.uint8], dimension: int) -> NDArray[np.float32]:
    """What bits stand for: 1 and -1, (rows, dimension)."""
    return np.unpackbits(packed, axis=1, count=dimension).astype(np.float32) * 2 - 1


def stored(vectors: NDArray[np.float32], kind: StoredType, ranges: Ranges | None) -> NDArray[Any]:
    """Vectors as a shard holds them; ``ranges`` are for int8."""
    if kind == "binary":
        return bits(vectors)
    if kind == "int8":
        assert ranges is not None
        return ranges.codes(vectors)
    return vectors.astype(kind, copy=False)


def restored(values: NDArray[Any], kind: StoredType, ranges: Ranges | None, dimension: int) -> NDArray[np.float32]:
    """(rows, dimension) float32 vectors of what a shard holds: as near as it can tell."""
    if kind == "binary":
        return signs(values, dimension)
    if kind == "int8":
        assert ranges is not None
        return ranges.values(values)
    return values.astype(np.float32, copy=False)
