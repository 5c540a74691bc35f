"""The order in which rows are read: a pure function of the seed and the position, so that nothing needs saving."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from l2v.errors import L2VError


class Pick(NamedTuple):
    """A row to read, and the key of the randomness that belongs to this reading of it."""

    row: int
    key: int
    """Position in the stream; negative for a row that only fills up a rank's share and must not count."""


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that differs wherever a part differs."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class GlobalBatches(Sampler[list[Pick]]):
    """Batches for as many steps as training takes, of which each rank reads its share; see :class:`TrainingOrder`.

    Args:
        batch_size: rows a batch on each rank.
        batches: how many batches training takes in all.
        first: the first batch to yield.
        seed: of the shuffles.
        rank: of this process.
        world_size: processes.
        override: what an error names.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        batches: int,
        first: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        override: str = "stage.batch_size",
    ) -> None:
        if batch_size < 1:
            raise L2VError(f"{override}={batch_size}: expected at least 1 row")
        self.batch_size, self.batches, self.first = batch_size, batches, first
        self.seed, self.rank = seed, rank
        self.global_batch = batch_size * world_size
        self.needed = f"{override}={batch_size} on {world_size} process(es) needs {self.global_batch} rows"

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Pick]]:
        for number in range(self.first, self.batches):
            yield self.batch(number)

    def batch(self, number: int) -> list[Pick]:
        """The picks of this rank in batch ``number``."""
        begin = self.rank * self.batch_size
        rows = self.rows_of(number)[begin : begin + self.batch_size].tolist()
        first_key = number * self.global_batch + begin
        return [Pick(row, first_key + n) for n, row in enumerate(rows)]

    def rows_of(self, number: int) -> np.ndarray:
        """The rows of all ranks in batch ``number`` (global batch,)."""
        raise NotImplementedError


class TrainingOrder(GlobalBatches):
    """Batches of shuffled rows, for as many steps as training takes, passing over the data as often as needed.

    The stream is the concatenation of one shuffle of the rows a pass; each pass drops the rows that fill no global
    batch. Batch k holds the same rows whatever the number of ranks, and a run that is resumed at batch k starts there.

    Args:
        rows: how many there are.
        settings: see :class:`GlobalBatches`.
    """

    def __init__(self, rows: int, **settings: Any) -> None:
        super().__init__(**settings)
        if rows < self.global_batch:
            raise L2VError(f"{self.needed}, but the training data has {rows}; lower it or give more data")
        self.rows = rows
        self._pass, self._shuffle = -1, np.empty(0, dtype=np.int64)

    def rows_of(self, number: int) -> np.ndarray:
        current, offset = divmod(number, self.rows // self.global_batch)
        if current != self._pass:
            self._pass, self._shuffle = current, shuffled(self.rows, seed_of(self.seed, "shuffle", current))
        return self._shuffle[offset * self.global_batch : (offset + 1) * self.global_batch]


class ListedBatches(Sampler[list[Pick]]):
    """Batches that are known beforehand."""

    _batches: list[list[Pick]]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Pick]]:
        return iter(self._batches)


class ValidationOrder(ListedBatches):
    """Every row once, in order, shared among the ranks in equal numbers of batches; fillers have a negative key."""

    def __init__(self, rows: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        share = -(-rows // world_size)
        numbers = range(rank * share, (rank + 1) * share)
        picks = [Pick(n, n) if n < rows else Pick(rows - 1, -1) for n in numbers]
        self._batches = [picks[begin : begin + batch_size] for begin in range(0, share, batch_size)]


def shuffled(count: int, seed: int) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


def evenly(rows: int, count: int) -> list[int]:
    """Numbers of ``count`` rows, evenly spaced."""
    dtype = torch.float32 if rows <= 2**24 else torch.float64  # which holds larger whole numbers
    return torch.linspace(0, rows - 1, count, dtype=dtype).round().long().tolist()
