"""From strings to padded batches: the one tokenizer path."""

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from l2v.bidirectional import position_ids
from l2v.errors import L2VError


class Tokens(NamedTuple):
    """A tokenized text."""

    input_ids: list[int]
    text_begin: int = 0
    """Index of the first token that is pooled: what comes before belongs to the instruction."""


class Batch(TypedDict):
    """Padded rows. All tensors are (batch, length) int64."""

    input_ids: Tensor
    attention_mask: Tensor
    pool_mask: Tensor
    position_ids: NotRequired[Tensor]
    """Only where rows are padded on the left."""


def clean(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can read, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    instructions: Sequence[str | None] | None = None,
    separator: str = ": ",
) -> list[Tokens]:
    """Tokenize texts, each after its instruction, cut on the right to ``max_length`` tokens.

    The instruction's tokens are found by character offsets in the whole prompt, so a token that the tokenizer makes
    across the border counts as text. Special tokens before the text belong to an instruction if there is one, as in
    LLM2Vec. An empty prompt becomes one special token (BOS, else EOS), and an empty text after an instruction is
    represented by its instruction.

    Raises:
        L2VError: an instruction leaves no room for its text.
    """
    if not texts:
        return []
    cleaned = [clean(text) for text in texts]
    wanted = instructions if instructions is not None else [None] * len(texts)
    prefixes = [clean(i) + separator if i else "" for i in wanted]
    encoded = tokenizer(
        [prefix + text for prefix, text in zip(prefixes, cleaned, strict=True)],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=any(prefixes),
        return_attention_mask=False,
    )
    empty = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    tokens = []
    for row, (ids, prefix, text) in enumerate(zip(encoded["input_ids"], prefixes, cleaned, strict=True)):
        if not ids:
            tokens.append(Tokens([empty]))
        elif not prefix:
            tokens.append(Tokens(ids))
        else:
            ends = (end for _, end in encoded["offset_mapping"][row])
            begin = next((i for i, end in enumerate(ends) if end > len(prefix)), None)
            if begin is None and text.strip() and len(ids) >= max_length:
                raise L2VError(
                    f"the instruction {prefix[:40]!r}... takes all of max_length={max_length} tokens; raise max_length"
                )
            tokens.append(Tokens(ids, begin or 0))
    return tokens


def pad(tokens: Sequence[Tokens], pad_token_id: int, side: str = "right") -> Batch:
    """Pad rows to the longest of them."""
    length = max(len(t.input_ids) for t in tokens)
    input_ids = torch.full((len(tokens), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    pool_mask = torch.zeros_like(input_ids)
    for row, (ids, begin) in enumerate(tokens):
        first = length - len(ids) if side == "left" else 0
        last = first + len(ids)
        input_ids[row, first:last] = torch.tensor(ids)
        attention_mask[row, first:last] = 1
        pool_mask[row, first + begin : last] = 1
    batch = Batch(input_ids=input_ids, attention_mask=attention_mask, pool_mask=pool_mask)
    if side == "left":
        batch["position_ids"] = position_ids(attention_mask)
    return batch


def mask_token_id(tokenizer: PreTrainedTokenizerBase, mask_token: str) -> int:
    """The id of the token that stands for a hidden one.

    Raises:
        L2VError: the vocabulary has no such token.
    """
    found = tokenizer.get_vocab().get(mask_token)
    if found is None:
        raise L2VError(
            f"stage.mask_token={mask_token!r} is not one token of this model's vocabulary; choose another, e.g. '_'"
        )
    return found
