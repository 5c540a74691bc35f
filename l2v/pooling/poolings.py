"""The poolings of the paper (section 2.2 and table 5), by the names that configs use."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2v.pooling.base import Pooling

PoolingName = Literal["mean", "weighted_mean", "last_token", "bos"]
POOLINGS: tuple[str, ...] = get_args(PoolingName)


class Mean(Pooling):
    """The mean of the text's states, summed in float32."""

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        pool_mask: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch hidden"]:
        weights = self.weights(pool_mask).float()
        weights = weights / weights.sum(dim=1, keepdim=True)
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.einsum("bl,blh->bh", weights, hidden.float())

    def weights(self, pool_mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """What each token counts."""
        return pool_mask


class WeightedMean(Mean):
    """The n-th token of the text counts n times, as in SGPT."""

    def weights(self, pool_mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        return pool_mask * pool_mask.cumsum(dim=1)


class LastToken(Pooling):
    """The state of the text's last token."""

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        pool_mask: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch hidden"]:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, (pool_mask * (positions + 1)).argmax(dim=1)].float()


class FirstToken(Pooling):
    """The state of the first token of all, also of an instruction: beginning-of-text, where the tokenizer adds it."""

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        pool_mask: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch hidden"]:
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, attention_mask.argmax(dim=1)].float()


_BY_NAME: dict[str, Pooling] = {
    "mean": Mean(),
    "weighted_mean": WeightedMean(),
    "last_token": LastToken(),
    "bos": FirstToken(),
}


def pool(
    hidden: Float[Tensor, "batch length hidden"],
    pool_mask: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"],
    pooling: PoolingName | Pooling = "mean",
) -> Float[Tensor, "batch hidden"]:
    """Pool token states into one float32 vector a text, not normalised; see :meth:`Pooling.forward`.

    Args:
        hidden: token states.
        pool_mask: 1 for each token to pool, at least one a row.
        attention_mask: 1 for each token that is no padding.
        pooling: one of the four by its name, or a pooling of one's own.
    """
    if isinstance(pooling, Pooling):
        return pooling(hidden, pool_mask, attention_mask)
    if pooling not in _BY_NAME:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    return _BY_NAME[pooling](hidden, pool_mask, attention_mask)


def pooling_name(pooling: PoolingName | Pooling) -> str:
    """What results and cards call a pooling."""
    return pooling if isinstance(pooling, str) else type(pooling).__name__
