"""The contrastive loss with in-batch negatives."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from l2v.losses.triplets import cosines


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
    scores = cosines(queries, documents) / temperature
    return F.cross_entropy(scores, torch.arange(queries.shape[0], device=queries.device) + first_positive)
