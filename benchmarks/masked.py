"""Blocks of running text with hidden tokens, as the benchmarks give them to all sides."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from l2v.text.masking import mask_tokens
from l2v.text.tokenization import mask_token_id


def masked_blocks(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, rows: int, length: int
) -> tuple[Tensor, Tensor]:
    """Ids and labels (rows, length) of the texts in a row, repeated as needed, with a fifth hidden as MNTP does."""
    ids = torch.tensor(tokenizer(" ".join(texts), verbose=False).input_ids)
    ids = ids.repeat(1 + rows * length // len(ids))[: rows * length].view(rows, length)
    return mask_tokens(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        probability=0.2,
        strategy="bert",
        mask_token_id=mask_token_id(tokenizer, "_"),
        vocabulary_size=len(tokenizer),
        generator=torch.Generator().manual_seed(0),
    )
