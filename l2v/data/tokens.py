"""Texts to token rows: tokenized once, kept as an Arrow file, memory mapped."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from transformers import PreTrainedTokenizerBase

from l2v.data.texts import TextSource
from l2v.errors import L2VError, panics_told
from l2v.progress import track
from l2v.runs.files import cache_folder, draft_folder
from l2v.runs.ledger import is_kept, seal
from l2v.text.prompts import Prompt
from l2v.text.tokenization import clean, tokenize
from l2v.text.vocabulary import check_ids

_CHUNK = 1000
_FILE = "rows.arrow"
_BLOCKS = pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32()))])
_TEXTS = _BLOCKS.append(pyarrow.field("text_begin", pyarrow.int32())).append(pyarrow.field("number", pyarrow.int64()))
_VERSION = 7
"""Part of the cache's key: raise it when the same texts would make other rows."""

MakeRows = Callable[[Iterable[list[str]]], Iterator[Sequence[Any]]]
"""Chunks of texts to rows: a value a column."""


def block_rows(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, length: int, *, show: bool = True
) -> datasets.Dataset:
    """Rows of exactly ``length`` tokens: texts joined, an end-of-text token after each (MNTP; paper, appendix D.1.1).

    The remainder that fills no row is dropped.

    Raises:
        L2VError: the texts make no row.
    """

    def make(chunks: Iterable[list[str]]) -> Iterator[tuple[list[int]]]:
        rest: list[int] = []
        for chunk in chunks:
            with panics_told():
                rows = tokenizer(chunk, return_attention_mask=False, verbose=False)["input_ids"]
            check_ids(chunk, rows, tokenizer)
            for ids in rows:
                rest += ids
                if ids and tokenizer.eos_token_id not in (None, ids[-1]):
                    rest.append(tokenizer.eos_token_id)
            whole = len(rest) - len(rest) % length
            yield from ((rest[begin : begin + length],) for begin in range(0, whole, length))
            rest = rest[whole:]

    return _cached(source, tokenizer, f"blocks of {length} tokens", _BLOCKS, make, show)


def text_rows(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    prompt: Prompt | None = None,
    show: bool = True,
) -> datasets.Dataset:
    """A row a text, cut to ``max_length`` tokens; texts without a token are left out (SimCSE).

    Columns: ``input_ids``; ``text_begin``, the index of the first token that is pooled; ``number``, the text's place in
    the source.

    Raises:
        L2VError: the texts make no row.
    """

    wanted = prompt or Prompt()

    def make(chunks: Iterable[list[str]]) -> Iterator[tuple[list[int], int, int]]:
        special = set(tokenizer.all_special_ids)
        numbers = itertools.count()
        for chunk in chunks:
            rows = tokenize(chunk, tokenizer, max_length=max_length, prompt=wanted)
            for row, number in zip(rows, numbers, strict=False):
                if not special.issuperset(row.input_ids):
                    yield *row, number

    return _cached(source, tokenizer, f"texts of up to {max_length} tokens", _TEXTS, make, show, repr(wanted))


def _cached(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    schema: pyarrow.Schema,
    make: MakeRows,
    show: bool,
    settings: str = "",
) -> datasets.Dataset:
    key = "\n".join([str(_VERSION), source.fingerprint(), tokenizer_hash(tokenizer), kind, settings])
    folder = cache_folder("tokens") / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not is_kept(folder):
        with draft_folder(folder) as draft:
            rows = make(_chunks(track(source.texts(), "tokenizing", show=show)))
            if write_rows(rows, draft / _FILE, schema) == 0:
                raise L2VError(f"the data gives no {kind}; give more text or lower the length in stage=")
            seal(draft)
    return datasets.Dataset.from_file(str(folder / _FILE))


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    while chunk := [clean(text) for text in itertools.islice(texts, _CHUNK)]:
        yield chunk


def write_rows(rows: Iterator[Sequence[Any]], path: Path, schema: pyarrow.Schema) -> int:
    """Write rows, a value a column of the schema, as an Arrow stream, some at a time, and count them."""
    count = 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            columns = zip(*chunk, strict=True)
            arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
            count += len(chunk)
    return count


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What pins a tokenizer's output: its vocabulary, merges and special tokens.

    How it last truncated and padded is no part of it: a call changes that.
    """
    before, _, after = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')  # truncation, padding; the rest
    state = json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True) + (after or before)
    return hashlib.sha256(state.encode()).hexdigest()
