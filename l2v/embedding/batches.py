"""The batches of one process, of which all processes have as many."""

import math
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from l2v.embedding.inputs import Inputs, Row, chunks
from l2v.embedding.job import Encoding
from l2v.embedding.shards import count_shards
from l2v.encoders.preparation import Preparation
from l2v.errors import L2VError

CALIBRATION, FILLER = -1, -2
"""Batches that belong to no shard: for the ranges of int8; and for a rank that waits for the others."""


class Batch(NamedTuple):
    """Texts of like length.

    Attributes:
        inputs: of the encoder.
        shard: that they belong to, or ``CALIBRATION`` or ``FILLER``.
        size: rows of that shard.
        places: (batch,) of the texts in it.
        kept: of each text.
    """

    inputs: dict[str, Any]
    shard: int
    size: int
    places: list[int]
    kept: list[tuple[Any, ...]]


def batches_of(chunk: list[Row], shard: int, preparation: Preparation, most: int) -> Iterator[Batch]:
    """The batches of a shard, of at most so many texts each, the longest first."""
    items = preparation.items([row.text for row in chunk])
    order = sorted(range(len(chunk)), key=lambda place: -preparation.length(items[place]))
    for begin in range(0, len(order), most):
        places = order[begin : begin + most]
        inputs = preparation.collate([items[place] for place in places])
        yield Batch(inputs, shard, len(chunk), places, [chunk[place].kept for place in places])


def shard_chunks(encoding: Encoding, rows: int, wanted: list[int]) -> Iterator[tuple[int, list[Row]]]:
    """The rows of the ``wanted`` shards, in ascending order, with their numbers.

    Args:
        encoding: what is encoded.
        rows: of all files.
        wanted: numbers of shards, ascending.

    Raises:
        L2VError: the files do not have so many rows any more.
    """
    return _checked(encoding, encoding.inputs(), rows, frozenset(wanted), wanted[-1] + 1 if wanted else 0)


def sample_chunks(encoding: Encoding, rows: int) -> Iterator[tuple[int, list[Row]]]:
    """The first ``rows`` of what gives the ranges of int8, in parts as large as a shard; see :func:`shard_chunks`."""
    parts = range(math.ceil(rows / encoding.shard_rows))
    return _checked(encoding, encoding.sample(), rows, parts, len(parts))


def _checked(
    encoding: Encoding, inputs: Inputs, rows: int, wanted: Container[int], count: int
) -> Iterator[tuple[int, list[Row]]]:
    size = encoding.shard_rows
    for number, chunk in chunks(inputs.rows(), size, wanted, count):
        if len(chunk) != min(size, rows - number * size):
            raise L2VError(f"files={encoding.files}: changed since the first look at them; delete output= first")
        yield number, chunk


class Batches(IterableDataset):
    """The batches of one process, of which all processes have as many: some strategies need all of them in each step.

    Missing shards are dealt out one by one: in a folder without any, to process (number modulo processes).

    Args:
        encoding: what is encoded.
        manifest: with the numbers of rows.
        missing: shards to make.
        preparation: of the encoder's texts.
        rank: of the process.
        world_size: processes.
    """

    def __init__(
        self,
        encoding: Encoding,
        manifest: dict[str, Any],
        missing: list[int],
        preparation: Preparation,
        rank: int,
        world_size: int,
    ) -> None:
        self.encoding, self.missing, self.rank, self.world_size = encoding, missing, rank, world_size
        self.rows, self.shards = manifest["rows"], count_shards(manifest)
        self.sample = manifest["calibration_rows"] if missing and manifest["calibration"] is None else 0
        self.preparation = preparation

    def __len__(self) -> int:
        """Batches of each process."""
        return sum(self._of_sample()) + self._most()

    def __iter__(self) -> Iterator[Batch]:
        rounds = self._of_sample()
        for (_, chunk), batches in zip(sample_chunks(self.encoding, self.sample), rounds, strict=True):
            own = list(batches_of(chunk, CALIBRATION, self.preparation, self.encoding.batch_size))
            own = own[self.rank :: self.world_size]
            yield from own
            yield from self._fillers(batches - len(own))
        made = 0
        for number, chunk in shard_chunks(self.encoding, self.rows, self._own(self.rank)):
            for batch in batches_of(chunk, number, self.preparation, self.encoding.batch_size):
                made += 1
                yield batch
        yield from self._fillers(self._most() - made)

    def _of_sample(self) -> list[int]:
        """Batches of each process for each chunk of the sample."""
        size = self.encoding.shard_rows
        rows = [min(size, self.sample - begin) for begin in range(0, self.sample, size)]
        return [math.ceil(self._count(count) / self.world_size) for count in rows]

    def _most(self) -> int:
        """Batches for the shards of the process that has most of them."""
        return max(sum(self._count(self._size(n)) for n in self._own(rank)) for rank in range(self.world_size))

    def _own(self, rank: int) -> list[int]:
        return self.missing[rank :: self.world_size]

    def _size(self, number: int) -> int:
        return min(self.encoding.shard_rows, self.rows - number * self.encoding.shard_rows)

    def _count(self, rows: int) -> int:
        return math.ceil(rows / self.encoding.batch_size)

    def _fillers(self, count: int) -> Iterator[Batch]:
        for _ in range(count):
            yield self.filler()

    def filler(self) -> Batch:
        """A batch of a short text, whose vector is thrown away."""
        return Batch(self.preparation.collate(self.preparation.items(["a"])), FILLER, 0, [0], [()])


def as_it_is(batch: Any) -> Any:
    return batch
