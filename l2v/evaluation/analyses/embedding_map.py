"""Labelled texts as points on a plane, and how well their vectors keep the labels apart."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from l2v.data.order import evenly
from l2v.data.wikipedia import WikipediaExcerpt
from l2v.encoders.text_encoder import TextEncoder
from l2v.encoders.texts import unit
from l2v.errors import L2VError
from l2v.evaluation.mteb.files import ClusteringSet
from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task

_BLOCK = 1024
"""Vectors that are compared with all others at once."""
_COMPONENTS = 50
"""Of PCA, before t-SNE, as its authors did."""


@dataclass(frozen=True)
class WikipediaPassages:
    """Passages of the longest held-out articles of the Wikipedia excerpt; an article's title is the label.

    Attributes:
        articles: how many.
        passages: of each at most, evenly spaced.
        words: of a passage: a paragraph of at least so many, cut to them.
    """

    articles: Annotated[int, Ge(2)] = 8
    passages: Annotated[int, Ge(2)] = 40
    words: Annotated[int, Ge(1)] = 40

    label: ClassVar[str] = "Wikipedia passages"
    instruction: ClassVar[str | None] = None

    def rows(self) -> list[tuple[str, str]]:
        """Texts with their labels."""
        found = {
            article.title: [p for p in article.paragraphs if len(p.split()) >= self.words]
            for article in WikipediaExcerpt("held_out").articles()
        }
        longest = sorted(found, key=lambda title: -len(found[title]))[: self.articles]
        rows = []
        for title in sorted(longest):
            paragraphs = found[title]
            for place in evenly(len(paragraphs), min(self.passages, len(paragraphs))):
                rows.append((" ".join(paragraphs[place].split()[: self.words]), title))
        return rows

    def fingerprint(self) -> str:
        """What pins the texts."""
        settings = f"{self.articles}:{self.passages}:{self.words}"
        return f"{WikipediaExcerpt('held_out').fingerprint()}:{settings}"


@dataclass(frozen=True)
class EmbeddingMap(Task):
    """Purity of the nearest neighbours and the silhouette of the labels, by cosine, and a map for the report.

    The map is t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components of the unit vectors.
    Both scores are those of the whole vectors: a map of two dimensions cannot keep all distances.

    Attributes:
        texts: labelled texts.
        neighbours: of a text, that its label is compared with; fewer where its label has fewer other texts.
        points: of the map; of more texts, evenly spaced ones are drawn.
        method: tsne, or pca, which is faster and shows the largest directions only.
        perplexity: of t-SNE: about how many neighbours a point has; at most a third of the points is used.
        seed: of t-SNE.
        batch_size: texts in a batch.
    """

    texts: WikipediaPassages | ClusteringSet
    neighbours: Annotated[int, Ge(1)] = 10
    points: Annotated[int, Ge(4)] = 1000
    method: Literal["tsne", "pca"] = "tsne"
    perplexity: Annotated[float, Ge(1)] = 30.0
    seed: int = 0
    batch_size: Annotated[int, Ge(1)] = 32

    metric = "purity"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"Map of {self.texts.label}"

    def check(self, store: ResultStore) -> None:
        """Raise an L2VError where the texts cannot be read or have too few labels."""
        rows = self.texts.rows()
        labels = {label for _, label in rows}
        if len(labels) < 2 or len(labels) >= len(rows):
            raise L2VError(
                f"{self.label}: {len(rows)} texts with {len(labels)} labels; expected two labels or more, and several "
                "texts of a label"
            )
        if len(rows) <= self.neighbours:
            raise L2VError(f"{self.label}: {len(rows)} texts; expected more than neighbours={self.neighbours}")

    def evaluated_texts(self) -> list[str]:
        return [text for text, _ in self.texts.rows()]

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """The purity, and ``<name>_silhouette``. ``plot`` has a point and a label's number for each text of the map."""
        from sklearn.metrics import silhouette_score

        texts, labels = map(list, zip(*self.texts.rows(), strict=True))
        names = list(dict.fromkeys(labels))
        numbers = np.array([names.index(label) for label in labels])
        found = encoder.encode(
            texts, instruction=self.texts.instruction, batch_size=self.batch_size, show_progress_bar=show
        )
        vectors = unit(found.astype(np.float64))
        details = {
            "purity": purity(vectors, numbers, self.neighbours),
            "silhouette": float(silhouette_score(vectors, numbers, metric="cosine")),
            "texts": len(texts),
            "labels": len(names),
        }
        drawn = evenly(len(texts), min(self.points, len(texts)))
        plot = {
            "kind": "embedding_map",
            "method": self.method,
            "labels": names,
            "label": numbers[drawn].tolist(),
            "points": self._map(vectors[drawn]).round(3).tolist(),
        }
        nearest = f"purity of {self.neighbours} neighbours"
        return {
            name: entry(self.label, nearest, details["purity"], details) | {"plot": plot},
            f"{name}_silhouette": entry(self.label, "silhouette", details["silhouette"], {}),
        }

    def _map(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (texts, 2) in 0..1: one scale for both directions."""
        places = principal(vectors, 2 if self.method == "pca" else _COMPONENTS)
        if self.method == "tsne":
            from sklearn.manifold import TSNE

            perplexity = min(self.perplexity, (len(vectors) - 1) / 3)
            places = TSNE(perplexity=perplexity, init="pca", random_state=self.seed).fit_transform(places).astype(float)
        places = places - places.min(axis=0)
        return places / max(places.max(), 1e-12)


def principal(vectors: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """Coordinates (texts, at most ``components``) along the directions of largest variance, each with a fixed sign."""
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    left = left[:, :components]
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    return left * signs * sizes[:components]


def purity(vectors: NDArray[np.float64], labels: NDArray[np.int64], neighbours: int) -> float:
    """Share of a vector's nearest neighbours by cosine, itself left out, that have its label; mean over the vectors.

    Of a label with fewer other vectors than ``neighbours`` only so many neighbours count, so that 1 can be reached; a
    vector that is alone with its label does not count.

    Args:
        vectors: (texts, dimension) of length 1.
        labels: (texts,) numbers.
        neighbours: at most, fewer than texts.
    """
    counted = np.minimum(np.bincount(labels)[labels] - 1, neighbours)
    right = np.zeros(len(vectors))
    for begin in range(0, len(vectors), _BLOCK):
        cosines = vectors[begin : begin + _BLOCK] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, begin + rows] = -np.inf
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
        counts = np.arange(neighbours) < counted[begin + rows, None]
        right[begin + rows] = ((labels[nearest] == labels[begin + rows, None]) & counts).sum(axis=1)
    known = counted > 0
    return float((right[known] / counted[known]).mean())
