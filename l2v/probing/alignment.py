"""Which tokens a word is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from l2v.errors import L2VError
from l2v.progress import track
from l2v.text.tokenization import clean, special_tokens_around
from l2v.text.vocabulary import check_ids, lone_token

Shift = Literal["same_token", "next_token"]
_CHUNK = 1000


@dataclass(frozen=True)
class Aligned:
    """Sentences as token rows, and each word's tokens.

    A row begins with a special token, so that the first word has a state before it, and holds a sentence or a part of
    one. Tokens of all rows are numbered through.
    """

    ids: NDArray[np.int32]
    """(tokens,)"""
    rows: NDArray[np.int64]
    """(rows + 1,) The row n is ``ids[rows[n]:rows[n + 1]]``."""
    begins: NDArray[np.int64]
    """(words,) Number of a word's first token."""
    ends: NDArray[np.int64]
    """(words,) Number after a word's last token. A word without a token has ``ends == begins``, and the token before
    ``begins`` is the last one before the word."""
    sentences: NDArray[np.int64]
    """(sentences + 1,) The words of sentence n are ``sentences[n]:sentences[n + 1]``."""


def align(
    sentences: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    override: str = "model.max_length",
    show: bool = False,
) -> Aligned:
    """Tokenize sentences as running text (words joined by blanks) and find each word's tokens by character offsets.

    A token is a word's if they share a character: a token across two words is of both, and a blank that is a token of
    its own is of none. A sentence of more than
    ``max_length`` tokens is split between words into several rows; a word of more than that is represented by its first
    tokens. Special tokens stand around each row as the tokenizer puts them; where it puts none in front, BOS (else
    EOS) is put there: without it the first word would have no state before it, and would itself be the first token,
    whose state is an outlier in most decoders.

    Args:
        sentences: words.
        tokenizer: a fast one.
        max_length: tokens a row, special ones included.
        override: what an error names.
        show: a progress bar.

    Raises:
        L2VError: no room for a token, or no token to begin with.
    """
    prefix, suffix = _special_tokens(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    if room < 1:
        raise L2VError(f"{override}={max_length}: expected room for a token beside {len(prefix + suffix)} special ones")
    ids: list[int] = []
    rows, begins, ends = [0], [], []
    for tokens, first, last in track(_tokens(sentences, tokenizer), "tokenizing", total=len(sentences), show=show):
        word = 0
        while word < len(first):
            # the first row has what comes before its first word too (a blank that is a token of its own)
            start = int(first[word]) if word else 0
            stop = word + 1
            if len(tokens) - start <= room:
                stop = len(first)
            else:
                while stop < len(first) and last[stop] - start <= room:
                    stop += 1
            cut = min(max(int(last[stop - 1]), start), start + room)
            shift = len(ids) + len(prefix) - start
            begins += (np.minimum(first[word:stop], cut) + shift).tolist()
            ends += (np.minimum(last[word:stop], cut) + shift).tolist()
            ids += [*prefix, *tokens[start:cut], *suffix]
            rows.append(len(ids))
            word = stop
    words = np.cumsum([0, *(len(sentence) for sentence in sentences)])
    return Aligned(np.array(ids, np.int32), np.array(rows), np.array(begins, np.int64), np.array(ends, np.int64), words)


def _tokens(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], NDArray[np.int64], NDArray[np.int64]]]:
    """Each sentence's token ids, and the first token of each word and the one after its last."""
    for begin in range(0, len(sentences), _CHUNK):
        chunk = [[clean(word) for word in sentence] for sentence in sentences[begin : begin + _CHUNK]]
        encoded = tokenizer(
            [" ".join(words) for words in chunk],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        check_ids([" ".join(words) for words in chunk], encoded["input_ids"], tokenizer)
        for words, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            lengths = np.array([len(word) for word in words], np.int64)
            word_ends = np.cumsum(lengths + 1) - 1
            spans = np.array(offsets, np.int64).reshape(-1, 2)
            # some tokenizers give (0, 0) to a token that stands for no character
            starts, stops = np.maximum.accumulate(spans[:, 0]), np.maximum.accumulate(spans[:, 1])
            first = np.searchsorted(stops, word_ends - lengths, side="right")
            last = np.searchsorted(starts, word_ends, side="left")
            last = np.where(lengths > 0, last, 0)
            yield ids, first, np.maximum(first, last)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What stands before and after a text; something stands before it always."""
    prefix, suffix = special_tokens_around(tokenizer)
    if not prefix:
        prefix = [lone_token(tokenizer)]
    return prefix, suffix


def word_vectors(
    states: Float[Tensor, "tokens hidden"],
    begins: Int[Tensor, " words"],
    ends: Int[Tensor, " words"],
    shift: Shift,
) -> Float[Tensor, "words hidden"]:
    """The mean of each word's states, in float32.

    ``same_token`` takes the states at a word's own tokens. ``next_token`` takes those one position earlier (first - 1
    ... last - 1), which MNTP trains to predict them (paper, section 3.1). A word without a token takes the state of the
    token before it.

    Args:
        states: of all tokens, of any floating-point type.
        begins: number of each word's first token, at least 1.
        ends: number after its last token.
        shift: which states.
    """
    empty = (ends == begins).long()
    back = torch.ones_like(begins) if shift == "next_token" else empty
    lengths = ends - begins + empty
    word = torch.repeat_interleave(torch.arange(len(begins)), lengths)
    within = torch.arange(len(word)) - (lengths.cumsum(0) - lengths)[word]
    summed = torch.zeros(len(begins), states.shape[1])
    summed.index_add_(0, word, states[(begins - back)[word] + within].float())
    return summed / lengths[:, None]
