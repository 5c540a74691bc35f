"""Vectors of a batch of queries and their documents: what losses of supervised training take."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Triplets:
    """Vectors of queries and their documents: of each query one positive, and any number of hard negatives."""

    queries: Float[Tensor, "queries hidden"]
    documents: Float[Tensor, "documents hidden"]
    """The positives in the order of the queries, then the hard negatives."""
    owner: Int[Tensor, " documents"]
    """The row of the query that a document belongs to."""
    query_hash: Int[Tensor, " queries"]
    """Of the text: equal where texts are equal, also that of a query and that of a document."""
    document_hash: Int[Tensor, " documents"]
    counted: Bool[Tensor, " queries"]
    """False for a row that only fills up a rank's share: it is nobody's negative."""
    scores: Float[Tensor, " documents"]
    """How well a document answers its query by a teacher, as the data say; NaN where they do not."""

    def __len__(self) -> int:
        return len(self.queries)

    @staticmethod
    def join(parts: Sequence["Triplets"]) -> "Triplets":
        """One batch of several, in their order."""
        offsets = itertools.accumulate((len(part) for part in parts), initial=0)
        owners = [part.owner + offset for part, offset in zip(parts, offsets, strict=False)]

        def positives_first(tensors: Sequence[Tensor]) -> Tensor:
            pairs = list(zip(tensors, map(len, parts), strict=True))
            return torch.cat([*(tensor[:count] for tensor, count in pairs), *(t[count:] for t, count in pairs)])

        return Triplets(
            queries=torch.cat([part.queries for part in parts]),
            documents=positives_first([part.documents for part in parts]),
            owner=positives_first(owners),
            query_hash=torch.cat([part.query_hash for part in parts]),
            document_hash=positives_first([part.document_hash for part in parts]),
            counted=torch.cat([part.counted for part in parts]),
            scores=positives_first([part.scores for part in parts]),
        )

    def of(self, kept: Bool[Tensor, " queries"]) -> "Triplets":
        """Some of the queries, with their documents."""
        documents = kept[self.owner]
        number = kept.long().cumsum(dim=0) - 1
        return Triplets(
            queries=self.queries[kept],
            documents=self.documents[documents],
            owner=number[self.owner[documents]],
            query_hash=self.query_hash[kept],
            document_hash=self.document_hash[documents],
            counted=self.counted[kept],
            scores=self.scores[documents],
        )

    def places(self) -> Int[Tensor, " queries"]:
        """Each query's place, from 1, of its positive among all documents by cosine; of equals it comes last."""
        everything = slice(None)
        scores = cosines(self.queries, self.documents)
        positives = scores[: len(self), : len(self)].diagonal()[:, None]
        return 1 + ((scores >= positives) & ~self.are_right(everything, self.document_hash)).sum(dim=1)

    def are_right(self, rows: slice, hashes: Int[Tensor, " texts"]) -> Bool[Tensor, "rows texts"]:
        """Which texts are the query itself or its positive, and so no negatives of these queries."""
        return (hashes == self.query_hash[rows, None]) | (hashes == self.document_hash[: len(self)][rows, None])


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(rows of a, rows of b), in float32: bfloat16 would be too coarse for a temperature of 0.05."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
