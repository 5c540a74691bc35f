"""Training losses on tensors. No model, no Lightning."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


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
    # cosines in bfloat16 would be too coarse for a temperature of 0.05, whatever the precision around
    with torch.autocast(queries.device.type, enabled=False):
        scores = F.normalize(queries.float(), dim=-1) @ F.normalize(documents.float(), dim=-1).T / temperature
        targets = torch.arange(queries.shape[0], device=queries.device) + first_positive
        return F.cross_entropy(scores, targets)
