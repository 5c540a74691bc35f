"""How vectors lie on the sphere: anisotropy, and the uniformity and alignment of Wang and Isola (arXiv 2005.10242)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l2v.encoders.text_encoder import TextEncoder
from l2v.encoders.texts import unit
from l2v.errors import L2VError
from l2v.evaluation.task import Task
from l2v.evaluation.tasks.retrieval import WikipediaRetrieval
from l2v.evaluation.tasks.sts import StsPairs

_BLOCK = 1024
"""Vectors that are compared with all others at once."""


@dataclass(frozen=True)
class Geometry(Task):
    """Anisotropy and uniformity of different texts, alignment of pairs that belong together; lower is better for all.

    Pairs are those of a file with a human score above ``positive``, as SimCSE takes them from STS-B (arXiv
    2104.08821), or an opening sentence of Wikipedia and each passage of its article.
    """

    pairs: StsPairs | WikipediaRetrieval
    positive: float = 4.0
    """Score above which a pair of a file counts."""
    metric: Literal["anisotropy", "uniformity", "alignment"] = "uniformity"
    """The number for tables; all of them are in the result's details."""
    label: str = "Geometry"
    needs_head: bool = False
    higher_is_better = False

    def run(self, encoder: TextEncoder, *, show: bool = False) -> dict[str, float]:
        """``anisotropy``, ``uniformity``, ``alignment``, and the numbers of ``texts`` and ``pairs``."""
        every, first, second = self._pairs()
        place = {text: number for number, text in enumerate(dict.fromkeys(every))}
        instruction = self.pairs.instruction if isinstance(self.pairs, StsPairs) else None
        found = encoder.encode(list(place), instruction=instruction, show_progress_bar=show)
        vectors = unit(found.astype(np.float64))
        ours, theirs = (vectors[[place[text] for text in texts]] for texts in (first, second))
        return {
            "anisotropy": anisotropy(vectors),
            "uniformity": uniformity(vectors),
            "alignment": alignment(ours, theirs),
            "texts": len(place),
            "pairs": len(first),
        }

    def evaluated_texts(self) -> list[str]:
        return self._pairs()[0]

    def _pairs(self) -> tuple[list[str], list[str], list[str]]:
        """All texts, and the first and second ones of pairs that belong together."""
        if isinstance(self.pairs, WikipediaRetrieval):
            queries, passages, owners = self.pairs.data()
            return [*queries, *passages], [queries[owner] for owner in owners], passages
        first, second, scores = self.pairs.pairs()
        chosen = np.flatnonzero(scores > self.positive).tolist()
        if not chosen:
            raise L2VError(f"{self.pairs.file}: no pair has a score above {self.positive}; lower the task's positive")
        return [*first, *second], [first[n] for n in chosen], [second[n] for n in chosen]


def anisotropy(vectors: NDArray[np.float64]) -> float:
    """Mean cosine over all pairs of different vectors; 0 if directions are spread evenly (arXiv 1909.00512).

    Args:
        vectors: (texts, dimension), two or more, of length 1.
    """
    count = len(vectors)
    return float((np.square(vectors.sum(axis=0)).sum() - np.square(vectors).sum()) / (count * (count - 1)))


def uniformity(vectors: NDArray[np.float64], *, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x - y|^2) over all pairs of different vectors; 0 if all are the same.

    Args:
        vectors: (texts, dimension), two or more, of length 1.
        t: 2 in the paper.
    """
    count, total = len(vectors), 0.0
    for begin in range(0, count, _BLOCK):
        distances = 2 - 2 * vectors[begin : begin + _BLOCK] @ vectors.T
        total += float(np.exp(-t * distances).sum())
    return float(np.log((total - count) / (count * (count - 1))))


def alignment(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean of |x - y|^2 over pairs (pairs, dimension) that belong together; 0 if each is at one place."""
    return float(np.square(first - second).sum(axis=1).mean())
