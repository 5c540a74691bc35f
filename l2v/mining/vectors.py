"""Vectors of more texts than fit into memory: encoded in shards that survive a stop, and read back by memory map."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l2v.encoders.finite import check_finite
from l2v.encoders.text_encoder import TextEncoder
from l2v.mining.texts import Texts
from l2v.progress import track
from l2v.runs.files import remove_drafts
from l2v.runs.ledger import Ledger

VectorDType = Literal["float16", "float32"]
_PIECE = 256
"""Texts handed to the encoder at once: a step of the progress bar."""


@dataclass(frozen=True)
class Vectors:
    """(count, dimension) vectors of length 1 on disk, in files of ``shard`` rows."""

    folder: Path
    count: int
    shard: int

    def file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"

    def missing(self) -> list[int]:
        """Shards that are not there as they were written."""
        files = [self.file(number) for number in range(-(-self.count // self.shard))]
        there = set(Ledger(self.folder).sealed(files))
        return [number for number, file in enumerate(files) if file not in there]

    def block(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows ``begin`` to ``end``, in float32: a copy of these alone."""
        parts = []
        for number in range(begin // self.shard, -(-end // self.shard)):
            first = number * self.shard
            rows = np.load(self.file(number), mmap_mode="r")
            parts.append(rows[max(begin - first, 0) : end - first])
        return np.concatenate(parts, dtype=np.float32)

    def at(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Chosen rows, in float32."""
        shards = numbers // self.shard
        parts = np.empty((len(numbers), np.load(self.file(0), mmap_mode="r").shape[1]), np.float32)
        for number in np.unique(shards).tolist():
            here = shards == number
            parts[here] = np.load(self.file(number), mmap_mode="r")[numbers[here] - number * self.shard]
        return parts


def encode_texts(
    texts: Texts,
    encoder: Callable[[], TextEncoder],
    folder: Path,
    *,
    instruction: str | None = None,
    batch_size: int = 32,
    dtype: VectorDType = "float16",
    shard: int = 2048,
    title: str = "encoding",
    show: bool = True,
) -> Vectors:
    """Encode what ``folder`` does not hold yet.

    Args:
        texts: what to encode.
        encoder: called once a text is missing, so that a model is loaded only where it is needed.
        folder: of these texts, this encoder and this instruction alone.
        instruction: put before every text.
        batch_size: texts in a batch.
        dtype: of the files. float16 moves a cosine by some 1e-4.
        shard: texts in a file; a stop loses the file that was being made.
        title: of the progress bar.
        show: the progress bar.

    Raises:
        L2VError: a vector is not finite, or the disk is full.
    """
    vectors = Vectors(folder, len(texts), shard)
    missing = vectors.missing()
    if not missing:
        return vectors
    folder.mkdir(parents=True, exist_ok=True)
    remove_drafts(folder)
    spans = {number: (number * shard, min((number + 1) * shard, len(texts))) for number in missing}

    def work() -> Iterator[None]:
        for number, (begin, end) in spans.items():
            chunk = texts.at(np.arange(begin, end))
            order = np.argsort([-len(text) for text in chunk], kind="stable")
            made = np.empty((len(chunk), encoder().dimension), dtype)
            for first in range(0, len(chunk), _PIECE):
                rows = order[first : first + _PIECE]
                made[rows] = encoder().encode(
                    [chunk[row] for row in rows], instruction=instruction, batch_size=batch_size, normalize=True
                )
                yield
            check_finite(made, None)
            with Ledger(folder).draft(vectors.file(number)) as draft, draft.open("wb") as file:
                np.save(file, made)

    for _ in track(work(), title, total=sum(-(-(end - begin) // _PIECE) for begin, end in spans.values()), show=show):
        pass
    return vectors
