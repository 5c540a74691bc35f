"""Which tokens are hidden from the model in MNTP."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Strategy = Literal["bert", "all"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
IGNORED = -100
"""The label of a position without a target, as in every Hugging Face loss."""


def mask_tokens(
    input_ids: Int[Tensor, "*batch length"],
    maskable: Bool[Tensor, "*batch length"],
    *,
    probability: float,
    strategy: Strategy,
    mask_token_id: int,
    vocabulary_size: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "*batch length"], Int[Tensor, "*batch length"]]:
    """Hide a share of the tokens (paper, section 2.1 and appendix D.1.1).

    Every maskable token is chosen on its own with ``probability`` (a fraction of tokens). Strategy ``bert`` replaces
    80% of the chosen ones by the mask token and 10% by a random token and leaves 10% as they are; ``all`` replaces
    each of them by the mask token (RoBERTa's share in the paper's words). The first token of a row has no position
    before it to be predicted from and is never chosen.

    Returns:
        the masked ids, and labels: the original id where a token was chosen, -100 elsewhere.
    """
    shape = input_ids.shape
    chosen = (torch.rand(shape, generator=generator) < probability) & maskable
    chosen[..., 0] = False
    labels = torch.where(chosen, input_ids, IGNORED)
    action = torch.rand(shape, generator=generator)
    replaced = chosen if strategy == "all" else chosen & (action < 0.8)
    masked = torch.where(replaced, mask_token_id, input_ids)
    if strategy == "bert":
        random_ids = torch.randint(vocabulary_size, shape, generator=generator, dtype=input_ids.dtype)
        masked = torch.where(chosen & (action >= 0.9), random_ids, masked)
    return masked, labels
