"""A tokenizer beside the embeddings of its model: which of its tokens the model has, and what pads."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from l2v.errors import L2VError

_EMBEDDINGS = "l2v_embeddings"
"""Attribute of a tokenizer with more tokens than its model has embeddings: their number. It goes where the tokenizer
goes, into loader processes too."""


def settle(tokenizer: PreTrainedTokenizerBase, embeddings: int | None) -> None:
    """Pad on the right, with a token that the model has, and remember how many it has.

    A padding token that is missing, or lies outside of the embeddings, is replaced by the end of a text, its beginning
    or an unknown token; where there is none of them, by a token that no text has as it is written. Padding is masked,
    so that any does, but sentence-transformers and others look its embedding up.

    Args:
        tokenizer: changed in place.
        embeddings: of the model; None: not known.

    Raises:
        L2VError: it has no fast form, which alone tells where in a text a token stands.
    """
    if not tokenizer.is_fast:
        raise L2VError(
            f"{tokenizer.name_or_path}: its tokenizer has no fast form (tokenizer.json), which l2v needs to tell "
            "instruction, template and text apart"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if embeddings is not None and len(tokenizer) > embeddings:
        setattr(tokenizer, _EMBEDDINGS, embeddings)
    if not _is_known(tokenizer, tokenizer.pad_token_id):
        named = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)
        known = (t for t in named if t is not None and _is_known(tokenizer, tokenizer.convert_tokens_to_ids(t)))
        tokenizer.pad_token = next(known, None) or _unwritten(tokenizer)


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens there are that the model has an embedding for."""
    return int(getattr(tokenizer, _EMBEDDINGS, len(tokenizer)))


def lone_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands for a text without a token: its beginning, else its end, else padding."""
    numbers = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(number for number in numbers if _is_known(tokenizer, number))


def check_ids(texts: Sequence[str], rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    """That the model has an embedding for each token.

    Raises:
        L2VError: naming the text and the token.
    """
    most = token_count(tokenizer)
    if most == len(tokenizer):
        return
    for text, ids in zip(texts, rows, strict=True):
        if odd := [number for number in ids if number >= most]:
            shown = text if len(text) <= 60 else f"{text[:60]}..."
            raise L2VError(
                f"the text {shown!r}: its token {tokenizer.convert_ids_to_tokens(odd[0])!r} has the number {odd[0]}, "
                f"and the model has embeddings for 0 to {most - 1}: the tokenizer was grown and the model was not; "
                "take the token out of the text, or resize the embeddings (model.resize_token_embeddings) and train"
            )


def _is_known(tokenizer: PreTrainedTokenizerBase, number: Any) -> bool:
    return number is not None and 0 <= number < token_count(tokenizer)


def _unwritten(tokenizer: PreTrainedTokenizerBase) -> str:
    """The longest token that stands for other characters than its own, such as the mark of a space."""
    tokens = [token for token, number in tokenizer.get_vocab().items() if _is_known(tokenizer, number)]
    marked = [token for token in tokens if not token.isascii()]
    return max(marked or tokens, key=lambda token: (len(token), token))
