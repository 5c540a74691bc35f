"""From strings to padded batches: the one tokenizer path."""

import json
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from l2v.errors import L2VError, panics_told
from l2v.text.prompts import TEXT, Framed, Prompt
from l2v.text.vocabulary import check_ids, lone_token, token_count

_PLAIN = Prompt()


class _OneAtATime:
    """A tokenizer keeps how it cuts from call to call: two threads with one tokenizer would cut each other's texts."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)  # another thread of the parent may hold it

    def renew(self) -> None:
        self.lock = threading.Lock()


_one_at_a_time = _OneAtATime()


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
    prompt: Prompt = _PLAIN,
    text_max_length: int | None = None,
) -> list[Tokens]:
    """Tokenize texts, each after its instruction and in its template, cut on the right to ``max_length`` tokens.

    What stands around a text is found by character offsets in the whole prompt, so a token that the tokenizer makes
    across the border counts as text. Only the text is cut: what a template or the tokenizer puts after it stays. An
    empty prompt becomes one special token (BOS, else EOS, else the padding token), and an empty text after an
    instruction is represented by its instruction.

    Args:
        texts: without their instructions.
        tokenizer: a fast one.
        max_length: tokens in all.
        instructions: one a text.
        prompt: template, separator, and what is pooled.
        text_max_length: tokens of a text alone.

    Raises:
        L2VError: what stands around a text leaves no room for it, or a token has no embedding.
    """
    if not texts:
        return []
    wanted = instructions if instructions is not None else [None] * len(texts)
    framed = [prompt.frame(clean(text), i and clean(i)) for text, i in zip(texts, wanted, strict=True)]
    framed_at_all = any(before or after for before, _, after in framed)
    # the tokenizer's own cut takes from the end, whatever stands there
    as_text = prompt.special_tokens == "text"
    by_offsets = framed_at_all or text_max_length is not None or as_text
    with panics_told(), _one_at_a_time.lock:
        encoded: Any = (
            _with_plain_texts(framed, prompt, tokenizer)
            if as_text
            else tokenizer(
                ["".join(parts) for parts in framed],
                truncation=not by_offsets,
                max_length=None if by_offsets else max_length,
                return_offsets_mapping=by_offsets,
                return_attention_mask=False,
                verbose=False,
            )
        )
    check_ids(texts, encoded["input_ids"], tokenizer)
    bos = tokenizer.bos_token_id
    tokens = []
    for row, (ids, frame) in enumerate(zip(encoded["input_ids"], framed, strict=True)):
        if not ids:
            tokens.append(Tokens([lone_token(tokenizer)]))
            continue
        begin = 0
        if by_offsets:
            ids, begin = _cut(ids, encoded["offset_mapping"][row], frame, max_length, text_max_length)
        if prompt.pooled_tokens == "all":
            begin = 0
        elif prompt.pooled_tokens == "text" and begin == 0 and len(ids) > 1 and ids[0] == bos:
            begin = 1
        tokens.append(Tokens(ids, begin))
    return tokens


def _with_plain_texts(
    framed: Sequence[Framed], prompt: Prompt, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[list[Any]]]:
    """Ids and character offsets in which the only special tokens are those of the template and of the tokenizer.

    What the template puts before and after is tokenized apart from instruction and text.
    """
    head, _, tail = prompt.template.partition(TEXT)
    settings = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    own = tokenizer([head, tail], **settings)
    inner = [frame.before[len(head) :] + frame.text for frame in framed]
    texts = plain_tokenizer(tokenizer).encode_batch(inner, add_special_tokens=False)
    begin, end = special_tokens_around(tokenizer)
    made: dict[str, list[list[Any]]] = {"input_ids": [], "offset_mapping": []}
    for text, encoded in zip(inner, texts, strict=True):
        made["input_ids"].append([*begin, *own["input_ids"][0], *encoded.ids, *own["input_ids"][1], *end])
        tail_begin = len(head) + len(text)
        parts = ((0, own["offset_mapping"][0]), (len(head), encoded.offsets), (tail_begin, own["offset_mapping"][1]))
        moved = [(first + by, last + by) for by, part in parts for first, last in part]
        made["offset_mapping"].append([*[(0, 0)] * len(begin), *moved, *[(0, 0)] * len(end)])
    return made


_plain_tokenizers: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer] = weakref.WeakKeyDictionary()


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer without the tokens that were added to its vocabulary, special or not: ``<|im_start|>`` is text.

    Many vocabularies have markers of messages that are not called special, which ``split_special_tokens`` leaves whole.
    White space that was added (indentation, as in GPT-NeoX) stays: it marks nothing.
    """
    if tokenizer not in _plain_tokenizers:
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        added = [token for token in settings["added_tokens"] if not token["special"] and not token["content"].strip()]
        _hide(settings["model"], {token["content"] for token in settings["added_tokens"] if token not in added})
        bare: dict[str, Any] = {"added_tokens": added, "truncation": None, "padding": None, "post_processor": None}
        _plain_tokenizers[tokenizer] = Tokenizer.from_str(json.dumps(settings | bare))
    return _plain_tokenizers[tokenizer]


def _hide(model: dict[str, Any], markers: set[str]) -> None:
    """Take the added tokens out of what a text may be cut into, where they stand in the vocabulary itself.

    Unigram finds any piece of its vocabulary in a text, and word vocabularies whole words. BPE joins no markers.

    Args:
        model: of the tokenizer's settings; its ids stay as they are.
        markers: the tokens.
    """
    vocabulary = model["vocab"]
    if model["type"] == "Unigram":
        model["vocab"] = [[_hidden(piece) if piece in markers else piece, score] for piece, score in vocabulary]
    elif model["type"] in ("WordLevel", "WordPiece"):
        hidden = markers - {model["unk_token"]}  # which it looks up by its name
        model["vocab"] = {_hidden(word) if word in hidden else word: id_ for word, id_ in vocabulary.items()}


def _hidden(piece: str) -> str:
    """What no text has, since each of them is split at blanks or has them replaced, and is without noncharacters."""
    return f" \ufdd0{piece}"


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begin = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
    return whole[:begin], whole[begin + len(plain) :]


def _cut(
    ids: list[int], offsets: list[tuple[int, int]], frame: Framed, max_length: int, text_max_length: int | None
) -> tuple[list[int], int]:
    """The tokens without the end of their text, if there are too many, and the index of the first to pool."""
    text_begin, text_end = len(frame.before), len(frame.before) + len(frame.text)
    # special tokens that the tokenizer adds have the empty span (0, 0)
    first = next((i for i, (_, end) in enumerate(offsets) if end > text_begin), len(ids))
    last = next((i for i in range(first, len(ids)) if offsets[i][0] >= text_end or offsets[i][1] == 0), len(ids))
    room = min(last - first, max_length - (len(ids) - (last - first)), text_max_length or last)
    if last == first:  # no text to represent: what stands around it is all there is
        ids, room = ids[:max_length], 0
    elif room < 1:
        what = f"the instruction {frame.before[:40]!r}..." if frame.before else "what stands around a text"
        raise L2VError(f"{what} takes all of max_length={max_length} tokens; raise max_length")
    begin = first if frame.before and first < len(ids) else 0
    return ids[: first + room] + ids[last:], begin


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


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count from each row's first token, whatever the padding side: (batch, length) int64."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def mask_token_id(tokenizer: PreTrainedTokenizerBase, mask_token: str) -> int:
    """The id of the token that stands for a hidden one.

    Raises:
        L2VError: the vocabulary has no such token.
    """
    found = tokenizer.get_vocab().get(mask_token)
    if found is None or found >= token_count(tokenizer):
        raise L2VError(
            f"stage.mask_token={mask_token!r} is not one token of this model's vocabulary; choose another, e.g. '_'"
        )
    return found
