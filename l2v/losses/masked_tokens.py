"""The loss of masked next token prediction."""

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
