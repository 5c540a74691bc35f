"""Similarity of sentence pairs against human scores (STS-B, SICK-R, ...), from a local file."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from l2v.encoder import Encoder
from l2v.errors import L2VError
from l2v.sources import file_hash


@dataclass(frozen=True)
class StsPairs:
    """Spearman correlation of the cosine with the human score of each pair.

    The defaults read STS-B's own files (sts-dev.csv: no header, tab-separated, unquoted).

    Attributes:
        file: text with a pair a line; None: there is none, and nothing is scored.
        first: column of the first sentence: a number from 0, or a name, where the file has a header line.
        second: of the second sentence.
        score: of the human score.
        delimiter: between columns.
        instruction: put before both sentences.
    """

    file: str | None
    first: int | str = 5
    second: int | str = 6
    score: int | str = 4
    delimiter: str = "\t"
    instruction: str | None = None

    label: str = "Sentence similarity"
    metric: str = "Spearman"
    needs_head: bool = False

    def __post_init__(self) -> None:
        if self.file is not None and not Path(self.file).expanduser().is_file():
            raise L2VError(
                f"{self.file}: no such file of scored sentence pairs (stage.sts.file or an evaluation's file)"
            )

    def run(self, encoder: Encoder, *, show: bool = False) -> dict[str, float]:
        first, second, scores = self.pairs()
        vectors = encoder.encode([*first, *second], instruction=self.instruction, show_progress_bar=show)
        return self.rate(vectors[: len(first)], vectors[len(first) :], scores)

    def evaluated_texts(self) -> list[str]:
        first, second, _ = self.pairs()
        return [*first, *second]

    def rate(
        self, first: NDArray[np.float32], second: NDArray[np.float32], scores: NDArray[np.float64]
    ) -> dict[str, float]:
        """The result for vectors (pairs, dimension) of the sentences."""
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines = (first * second).sum(axis=1) / np.maximum(norms, 1e-12)
        return {"Spearman": float(spearmanr(cosines, scores).statistic)}

    def pairs(self) -> tuple[list[str], list[str], NDArray[np.float64]]:
        """First sentences, second sentences, and scores.

        Raises:
            L2VError: no file, an unknown column, or a broken line.
        """
        if self.file is None:
            raise L2VError(f"{self.label}: file: must be given")
        file = Path(self.file).expanduser()
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE))
        named, first_line = [self.first, self.second, self.score], 1
        if any(isinstance(column, str) for column in named):
            header, rows, first_line = rows[0] if rows else [], rows[1:], 2
            for column in named:
                if column not in header:
                    raise L2VError(f"{file}: no column {column!r}; there are {', '.join(header)}")
            named = [header.index(str(column)) for column in named]
        first, second, scores = [], [], []
        a, b, score = (int(column) for column in named)
        for number, row in enumerate(rows, start=first_line):
            if not row:
                continue
            try:
                first.append(row[a])
                second.append(row[b])
                scores.append(float(row[score]))
            except (IndexError, ValueError):
                raise L2VError(
                    f"{file}:{number}: expected a score in column {score} and sentences in {a} and {b} of "
                    f"{len(row)} columns"
                ) from None
        if len(scores) < 2:
            raise L2VError(f"{file}: {len(scores)} pair(s); expected two or more")
        return first, second, np.array(scores)

    def fingerprint(self) -> str | None:
        """What pins the pairs: the file's hash."""
        return file_hash(Path(self.file).expanduser()) if self.file else None
