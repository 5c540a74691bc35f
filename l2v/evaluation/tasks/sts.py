"""Similarity of sentence pairs against human scores (STS-B, SICK-R, ...), from a local file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from l2v.data.readers import Column, number, table_rows
from l2v.encoders.text_encoder import TextEncoder
from l2v.errors import L2VError
from l2v.evaluation.task import Task
from l2v.runs.hashes import file_hash


@dataclass(frozen=True)
class StsPairs(Task):
    """Spearman correlation of the cosine with the human score of each pair.

    The defaults read STS-B's own files (sts-dev.csv: no header, tab-separated, unquoted).

    Attributes:
        file: unquoted text with a pair a line, or .jsonl, .csv, .tsv, .parquet where ``delimiter`` is None; None: there
            is none, and nothing is scored.
        first: column of the first sentence: a number from 0, or a name, where the file has a header line.
        second: of the second sentence.
        score: of the human score.
        delimiter: between the columns of unquoted text.
        instruction: put before both sentences.
    """

    file: str | None
    first: Column = 5
    second: Column = 6
    score: Column = 4
    delimiter: str | None = "\t"
    instruction: str | None = None

    label: str = "Sentence similarity"
    metric: str = "Spearman"
    needs_head: bool = False

    def __post_init__(self) -> None:
        if self.file is not None and not Path(self.file).expanduser().is_file():
            raise L2VError(
                f"{self.file}: no such file of scored sentence pairs (stage.sts.file or an evaluation's file)"
            )

    def run(self, encoder: TextEncoder, *, show: bool = False) -> dict[str, float]:
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
        if np.ptp(cosines) == 0:  # of an encoder that has collapsed; scipy would say nan
            return {"Spearman": 0.0}
        return {"Spearman": float(spearmanr(cosines, scores).statistic)}

    def pairs(self) -> tuple[list[str], list[str], NDArray[np.float64]]:
        """First sentences, second sentences, and scores.

        Raises:
            L2VError: no file, an unknown column, or a broken line.
        """
        if self.file is None:
            raise L2VError(f"{self.label}: file: must be given")
        paths = [Path(self.file).expanduser()]
        rows = table_rows(paths, (self.first, self.second), self.score, number, self.delimiter, self.label)
        scores = np.array([row[2] for row in rows])
        if np.ptp(scores) == 0:
            raise L2VError(f"{self.file}: every pair has the score {scores[0]:g}; nothing correlates with it")
        return [row[0] for row in rows], [row[1] for row in rows], scores

    def data_fingerprint(self) -> str | None:
        """What pins the pairs: the file's hash."""
        return file_hash(Path(self.file).expanduser()) if self.file else None
