"""From token states to one vector a text."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pooling = Literal["mean", "weighted_mean", "last_token", "bos"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def pool(
    hidden: Float[Tensor, "batch length hidden"],
    pool_mask: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"],
    pooling: Pooling = "mean",
) -> Float[Tensor, "batch hidden"]:
    """Pool token states into one vector per text (paper, section 2.2 and table 5).

    ``mean`` and ``weighted_mean`` run over ``pool_mask`` (the text without its instruction). ``weighted_mean`` gives
    the n-th pooled token the weight n, as SGPT does. ``last_token`` takes the last token of ``pool_mask`` and ``bos``
    the first token of ``attention_mask``. Padding may be on either side. The sums run in float32.

    Args:
        hidden: token states.
        pool_mask: 1 for each token to pool, at least one a row.
        attention_mask: 1 for each token that is no padding.
        pooling: which of the four.

    Returns:
        float32 vectors, not normalised.
    """
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    if pooling == "last_token":
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden[rows, (pool_mask * (positions + 1)).argmax(dim=1)].float()
    if pooling == "bos":
        return hidden[rows, attention_mask.argmax(dim=1)].float()
    if pooling not in ("mean", "weighted_mean"):
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    weights = pool_mask if pooling == "mean" else pool_mask * pool_mask.cumsum(dim=1)
    weights = weights.float()
    weights = weights / weights.sum(dim=1, keepdim=True)
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.einsum("bl,blh->bh", weights, hidden.float())
