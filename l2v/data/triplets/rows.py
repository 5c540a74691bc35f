"""Queries with a positive and hard negatives each: from files or the hub to token rows, read once.

A set is tokenized into an Arrow file of its own, so that a change of one set leaves the others as they are. Which rows
train and which are held out is settled when the files are opened, from the hashes of the texts.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from transformers import PreTrainedTokenizerBase

from l2v.data.datamodule import Rows
from l2v.data.mixed_order import RowTexts
from l2v.data.order import Pick
from l2v.data.tokens import tokenizer_hash, write_rows
from l2v.data.triplets.options import TripletMix, TripletSet
from l2v.data.triplets.reading import Counts, Triplet, read_triplets
from l2v.data.triplets.split import chosen_rows, row_texts
from l2v.errors import L2VError
from l2v.progress import say
from l2v.runs.files import cache_folder, draft_folder, read_json, write_json
from l2v.runs.ledger import is_kept, seal
from l2v.text.prompts import Prompt
from l2v.text.tokenization import Tokens, tokenize

_VERSION = 5
"""Part of the cache's key: raise it when the same files would make other rows."""
_CHUNK = 500
_ROWS, _COUNTS = "rows.arrow", "counts.json"
_SCHEMA = pyarrow.schema(
    [
        ("query", pyarrow.list_(pyarrow.int32())),
        ("query_begin", pyarrow.int32()),
        ("documents", pyarrow.list_(pyarrow.list_(pyarrow.int32()))),
        ("document_begins", pyarrow.list_(pyarrow.int32())),
        ("score", pyarrow.float32()),
        ("query_hash", pyarrow.int64()),
        ("document_hashes", pyarrow.list_(pyarrow.int64())),
        ("document_scores", pyarrow.list_(pyarrow.float32())),
    ]
)


class TripletRows(Rows):
    """Token rows of a mix. A row is a dictionary of the columns of the Arrow file and ``set``, a number of the mix."""

    def __init__(self, data: datasets.Dataset, index: np.ndarray, bounds: np.ndarray, mix: TripletMix) -> None:
        super().__init__(data, index)
        self.bounds, self.names, self.alpha = bounds, mix.names, mix.alpha

    def _columns(self, picks: list[Pick]) -> dict[str, list[Any]]:
        return super()._columns(picks) | {"set": self.sets[[pick.row for pick in picks]].tolist()}

    @property
    def sets(self) -> np.ndarray:
        """The number of each row's set (rows,)."""
        assert self.index is not None
        return np.searchsorted(self.bounds, self.index, side="right").astype(np.int16)

    def has_scores(self) -> bool:
        """Whether a document has a teacher's score."""
        column = self.data.data.column("document_scores")
        return any(not np.isnan(chunk.flatten().to_numpy(zero_copy_only=False)).all() for chunk in column.chunks)

    def texts(self) -> RowTexts:
        """Which texts each row has, for an order without false negatives."""
        assert self.index is not None
        return row_texts(self.data, self.bounds).take(self.index)


def triplet_rows(
    mix: TripletMix,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prompt: Prompt | None = None,
    show: bool = True,
) -> TripletRows:
    """The token rows of a part of a mix, read and tokenized where they are not in the cache.

    Args:
        mix: the sets, and the part.
        tokenizer: of the model.
        max_length: tokens a text.
        prompt: what stands around a text.
        show: progress bars, and what was left out.

    Raises:
        L2VError: a broken row, where ``on_error`` is fatal; nothing to train on.
    """
    encoding = _Encoding(tokenizer, max_length, prompt or Prompt())
    folders = [_cached(one, encoding, show) for one in mix.resolved()]
    parts = [datasets.Dataset.from_file(str(folder / _ROWS)) for folder in folders]
    data = datasets.concatenate_datasets(parts)
    bounds = np.cumsum([len(part) for part in parts])
    return TripletRows(data, chosen_rows(mix, data, bounds), bounds, mix)


def triplet_counts(
    mix: TripletMix, tokenizer: PreTrainedTokenizerBase, *, max_length: int, prompt: Prompt | None = None
) -> dict[str, dict[str, Any]]:
    """What reading the sets of a mix found: name -> the fields of :class:`Counts`, for sets that were read."""
    encoding = _Encoding(tokenizer, max_length, prompt or Prompt())
    files = {one.name: encoding.folder(one) / _COUNTS for one in mix.resolved()}
    return {name: read_json(file) for name, file in files.items() if file.exists()}


class _Encoding:
    """How texts become tokens; part of the key of what is made of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, prompt: Prompt) -> None:
        self.tokenizer, self.max_length, self.prompt = tokenizer, max_length, prompt
        self._key = f"{_VERSION}\n{tokenizer_hash(tokenizer)}\n{max_length}\n{prompt!r}\n"

    def folder(self, one: TripletSet) -> Path:
        """Where the rows of a set are kept."""
        key = self._key + one.fingerprint()
        return cache_folder("triplets") / hashlib.sha256(key.encode()).hexdigest()[:24]

    def tokenize(self, texts: list[str], instructions: list[str | None]) -> list[Tokens]:
        return tokenize(
            texts, self.tokenizer, max_length=self.max_length, instructions=instructions, prompt=self.prompt
        )


def _cached(one: TripletSet, encoding: _Encoding, show: bool) -> Path:
    folder = encoding.folder(one)
    if is_kept(folder):
        return folder
    counts = Counts()
    with draft_folder(folder) as draft:
        triplets = read_triplets(one, counts, show=show)
        counts.rows = write_rows(_tokenized(one, triplets, encoding), draft / _ROWS, _SCHEMA)
        if counts.rows == 0:
            first = f"; {counts.places[0]}" if counts.places else ""
            raise L2VError(f"{one.override}.files: no row of {one.name} can be used{first}")
        write_json(draft / _COUNTS, {"name": one.name, **dataclasses.asdict(counts)})
        seal(draft)
    if show:
        say(counts.line(one.name), style="yellow" if counts.broken else None)
    return folder


def _tokenized(one: TripletSet, triplets: Iterator[Triplet], encoding: _Encoding) -> Iterator[tuple[Any, ...]]:
    """Rows of ``_SCHEMA``."""
    while chunk := list(islice(triplets, _CHUNK)):
        wanted = [one.instructions(row.number) for row in chunk]
        own = [row.instruction or query for row, (query, _) in zip(chunk, wanted, strict=True)]
        queries = encoding.tokenize([row.query for row in chunk], own)
        texts = [text for row in chunk for text in row.documents]
        before = [document for row, (_, document) in zip(chunk, wanted, strict=True) for _ in row.documents]
        documents = iter(encoding.tokenize(texts, before))
        for row, query in zip(chunk, queries, strict=True):
            ids, begins = zip(*islice(documents, len(row.documents)), strict=True)
            hashes = [_text_hash(text) for text in row.documents]
            of_query = (query.input_ids, query.text_begin)
            yield *of_query, ids, begins, row.score, _text_hash(row.query), hashes, row.document_scores


def _text_hash(text: str) -> int:
    """A signed 64-bit number, equal for equal texts; among a million others, two are by a chance of 3 in 10^8."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
