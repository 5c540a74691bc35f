"""Training losses on tensors. No model, no Lightning."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2v.errors import L2VError

Direction = Literal["document-query", "query-query", "document-document"]


def masked_token_loss(
    logits: Float[Tensor, "masked vocabulary"],
    targets: Int[Tensor, " masked"],
    count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy, in nats a masked token (MNTP; paper, section 2.1).

    Args:
        logits: only of the positions that carry a label: position i-1 of each masked token i.
        targets: the hidden tokens' ids.
        count: divide the sum by this instead of by the number of targets (which may be 0).
    """
    if count is None:
        return F.cross_entropy(logits.float(), targets)
    return F.cross_entropy(logits.float(), targets, reduction="sum") / count.clamp(min=1)


def info_nce(
    queries: Float[Tensor, "queries hidden"],
    documents: Float[Tensor, "documents hidden"],
    temperature: float,
    first_positive: int = 0,
) -> Float[Tensor, ""]:
    r"""Contrastive loss with in-batch negatives (SimCSE, arXiv 2104.08821, equation 1; LLM2Vec, section 2.1).

    .. math:: L = -\frac{1}{n} \sum_i \log \frac{e^{\cos(q_i, d_i)/\tau}}{\sum_j e^{\cos(q_i, d_j)/\tau}}

    Query ``i`` belongs to document ``first_positive + i``; every other document is a negative. The scale of other
    code is 1 / temperature.

    Args:
        queries: this rank's queries.
        documents: the documents of all ranks.
        temperature: tau, above 0.
        first_positive: the row of ``documents`` where this rank's positives begin.
    """
    scores = _cosines(queries, documents) / temperature
    return F.cross_entropy(scores, torch.arange(queries.shape[0], device=queries.device) + first_positive)


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
        )

    def places(self) -> Int[Tensor, " queries"]:
        """Each query's place, from 1, of its positive among all documents by cosine; of equals it comes last."""
        everything = slice(None)
        scores = _cosines(self.queries, self.documents)
        positives = scores[: len(self), : len(self)].diagonal()[:, None]
        return 1 + ((scores >= positives) & ~self.are_right(everything, self.document_hash)).sum(dim=1)

    def are_right(self, rows: slice, hashes: Int[Tensor, " texts"]) -> Bool[Tensor, "rows texts"]:
        """Which texts are the query itself or its positive, and so no negatives of these queries."""
        return (hashes == self.query_hash[rows, None]) | (hashes == self.document_hash[: len(self)][rows, None])


@dataclass(frozen=True)
class Contrastive:
    r"""InfoNCE of queries with a positive each, hard negatives and in-batch negatives (LLM2Vec, appendix G).

    .. math:: L_i = -\log \frac{e^{\cos(q_i, d_i)/\tau}}{e^{\cos(q_i, d_i)/\tau} + \sum_c m_{ic} w_{ic} e^{s_{ic}/\tau}}

    The candidates :math:`c` are the documents of the other queries, with their hard negatives or without, the query's
    own hard negatives, and what ``directions`` adds; :math:`s_{ic}` is a cosine. :math:`m_{ic}` is 0 for a candidate
    whose text is that of the query or of its positive, else 1.

    Attributes:
        temperature: :math:`\tau`; the scale of other code is 1 / temperature: 50 for LLM2Vec's 0.02.
        hard_negatives: which of them a query sees: of all queries (LLM2Vec), or its own.
        directions: candidates beside the documents of the other queries j: ``document-query`` :math:`\cos(d_i, q_j)`,
            ``query-query`` :math:`\cos(q_i, q_j)`, ``document-document`` :math:`\cos(d_i, d_j)` with j's positive.
            All three are GTE's improved contrastive loss (arXiv 2308.03281).
        margin: :math:`m_{ic} = 0` also where :math:`s_{ic} > \cos(q_i, d_i)` + margin: more likely a positive that
            nobody marked. 0.1 in Qwen3-Embedding (arXiv 2506.05176), where it comes with the directions
            ``query-query`` and ``document-document``. None: keep them.
        hardness: :math:`\alpha` of the weight :math:`w_{ic} = e^{\alpha s_{ic}}` of a query's own hard negatives,
            without a gradient; 5 in EmbeddingGemma (arXiv 2509.20354). 0: all weights are 1.
        dimensions: sizes of shorter vectors, the first so many numbers of a whole one, that learn the task too
            (Matryoshka, arXiv 2205.13147). The loss is the weighted mean of theirs and the whole vectors' one.
        dimension_weights: one for each of ``dimensions``, beside 1 for the whole vectors. None: all 1.
    """

    temperature: Annotated[float, Gt(0)] = 0.02
    hard_negatives: Literal["all", "own"] = "all"
    directions: tuple[Direction, ...] = ()
    margin: Annotated[float, Ge(0)] | None = None
    hardness: Annotated[float, Ge(0)] = 0.0
    dimensions: tuple[Annotated[int, Ge(1)], ...] = ()
    dimension_weights: tuple[Annotated[float, Gt(0)], ...] | None = None

    def __post_init__(self) -> None:
        if self.dimension_weights is not None and len(self.dimension_weights) != len(self.dimensions):
            raise L2VError(
                f"stage.loss.dimension_weights: expected one for each of stage.loss.dimensions "
                f"({len(self.dimensions)}), found {len(self.dimension_weights)}"
            )

    def __call__(self, batch: Triplets, rows: slice = slice(None)) -> Float[Tensor, " rows"]:
        """The losses of these queries, in nats.

        Args:
            batch: of all ranks.
            rows: the queries to score, as a rank scores its own only.
        """
        weights = self.dimension_weights or (1.0,) * len(self.dimensions)
        losses = self._of_size(batch.queries, batch.documents, batch, rows)
        for size, weight in zip(self.dimensions, weights, strict=True):
            short = self._of_size(batch.queries[:, :size], batch.documents[:, :size], batch, rows)
            losses = losses + weight * short
        return losses / (1 + sum(weights))

    def _of_size(self, queries: Tensor, documents: Tensor, batch: Triplets, rows: slice) -> Tensor:
        """The losses of ``rows`` for whole or shortened vectors."""
        count = len(batch)
        target = torch.arange(count, device=queries.device)[rows]
        mine = batch.owner == target[:, None]
        is_hard = torch.arange(len(documents), device=queries.device) >= count
        is_positive = mine & ~is_hard

        scores = _cosines(queries[rows], documents)
        limit = torch.inf if self.margin is None else scores.detach().gather(1, target[:, None]) + self.margin
        wrong = batch.are_right(rows, batch.document_hash) | (scores > limit) | ~batch.counted[batch.owner]
        if self.hard_negatives == "own":
            wrong |= is_hard & ~mine
        logits = scores / self.temperature
        if self.hardness:
            logits = logits + self.hardness * scores.detach() * (mine & is_hard)
        candidates = [logits.masked_fill(wrong & ~is_positive, -torch.inf)]

        positives = documents[:count]
        pairs = {
            "document-query": (positives, queries, batch.query_hash),
            "query-query": (queries, queries, batch.query_hash),
            "document-document": (positives, positives, batch.document_hash[:count]),
        }
        for direction in self.directions:
            left, right, hashes = pairs[direction]
            scores = _cosines(left[rows], right)
            wrong = batch.are_right(rows, hashes) | (scores > limit) | ~batch.counted | mine[:, :count]
            candidates.append((scores / self.temperature).masked_fill(wrong, -torch.inf))
        return F.cross_entropy(torch.cat(candidates, dim=1), target, reduction="none")


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(rows of a, rows of b), in float32: bfloat16 would be too coarse for a temperature of 0.05."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
