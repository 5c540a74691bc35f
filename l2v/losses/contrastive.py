"""InfoNCE with hard negatives, and its variants."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from l2v.errors import L2VError
from l2v.losses.base import Loss
from l2v.losses.triplets import Triplets, cosines

Direction = Literal["document-query", "query-query", "document-document"]


@dataclass(frozen=True)
class Contrastive(Loss):
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

        Raises:
            L2VError: there is nothing but one positive.
        """
        if len(batch.documents) == 1:
            raise L2VError(
                "stage.loss: a batch of one query without negatives has nothing to push away; raise "
                "stage.global_batch_size or lower trainer.accumulate_grad_batches, or give data= with negatives"
            )
        weights = self.dimension_weights or (1.0,) * len(self.dimensions)
        losses = self._of_size(batch.queries, batch.documents, batch, rows)
        for size, weight in zip(self.dimensions, weights, strict=True):
            short = self._of_size(batch.queries[:, :size], batch.documents[:, :size], batch, rows)
            losses = losses + weight * short
        return losses / (1 + sum(weights))

    def check(self, hidden_size: int) -> None:
        for size in self.dimensions:
            if size >= hidden_size:
                raise L2VError(
                    f"stage.loss.dimensions: expected sizes below {hidden_size}, that of the whole vectors, which are "
                    f"always trained; found {size}"
                )

    def _of_size(self, queries: Tensor, documents: Tensor, batch: Triplets, rows: slice) -> Tensor:
        """The losses of ``rows`` for whole or shortened vectors."""
        count = len(batch)
        target = torch.arange(count, device=queries.device)[rows]
        mine = batch.owner == target[:, None]
        is_hard = torch.arange(len(documents), device=queries.device) >= count
        is_positive = mine & ~is_hard

        scores = cosines(queries[rows], documents)
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
            scores = cosines(left[rows], right)
            wrong = batch.are_right(rows, hashes) | (scores > limit) | ~batch.counted | mine[:, :count]
            candidates.append((scores / self.temperature).masked_fill(wrong, -torch.inf))
        return F.cross_entropy(torch.cat(candidates, dim=1), target, reduction="none")
