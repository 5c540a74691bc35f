"""Similarity of news texts against human judgement: the Lee, Pincombe and Welsh (2005) corpus in ``gensim``."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from l2v.encoders.text_encoder import TextEncoder
from l2v.evaluation.task import Task
from l2v.runs.locations import package_file

_FOLDER = "package:gensim/test/test_data/"


@dataclass(frozen=True)
class LeeSimilarity(Task):
    """Spearman correlation of the cosine with the mean human similarity, over all 1,225 pairs of 50 texts."""

    label: str = "Lee news similarity"
    metric: str = "Spearman"
    needs_head: bool = False

    def evaluated_texts(self) -> list[str]:
        return lee_texts()[0]

    def run(self, encoder: TextEncoder, *, show: bool = False) -> dict[str, float]:
        texts, human = lee_texts()
        vectors = encoder.encode(texts, show_progress_bar=show)
        pairs = np.triu_indices(len(texts), k=1)
        return {"Spearman": float(spearmanr(encoder.similarity(vectors, vectors)[pairs], human[pairs]).statistic)}


def lee_texts() -> tuple[list[str], NDArray[np.float64]]:
    """The 50 texts and the mean human similarities of their pairs in 0..1: (50, 50), above the diagonal."""
    texts = package_file(_FOLDER + "lee.cor").read_text(encoding="latin-1").strip().splitlines()
    return texts, np.loadtxt(package_file(_FOLDER + "similarities0-1.txt"))
