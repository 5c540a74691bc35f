"""Which rows of a mix train, and which validate."""

import datasets
import numpy as np

from l2v.data.mixed_order import RowTexts
from l2v.data.order import seed_of
from l2v.data.triplets.options import TripletMix
from l2v.errors import L2VError

# which rows train, and which validate


def row_texts(data: datasets.Dataset, bounds: np.ndarray) -> RowTexts:
    """The hashes of all rows of the files, from the memory map."""
    table = data.data
    documents = table.column("document_hashes")
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in documents.chunks])
    return RowTexts(
        sets=np.repeat(np.arange(len(bounds), dtype=np.int16), np.diff(bounds, prepend=0)),
        queries=table.column("query_hash").to_numpy(),
        documents=np.concatenate([chunk.flatten().to_numpy() for chunk in documents.chunks]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    )


def chosen_rows(mix: TripletMix, data: datasets.Dataset, bounds: np.ndarray) -> np.ndarray:
    """Numbers of the rows of the mix's part.

    Rows are ranked by a number that the seed and the query's text make, the same in every set; the first of each set
    are held out, so that all rows of a query are on one side: a query with more rows than there is room for trains. No
    row that trains has the text of a held-out query, as a query or as a document.
    """
    if mix.held_out == 0:
        return np.arange(len(data))
    texts = row_texts(data, bounds)
    ranks = _mix_bits(texts.queries, seed_of(mix.seed, "held_out"))
    held = np.zeros(len(data), dtype=bool)
    for first, last in zip([0, *bounds[:-1]], bounds, strict=True):
        count = min(mix.held_out, (last - first) // 10)
        if count:
            held[first:last] = _first_of(ranks[first:last], count)
    if not held.any():
        raise L2VError(
            "data.held_out: expected a set of 10 rows or more, of which one is held out, and a query that has no more "
            "rows than that, found none; set data.held_out=0 and name data.validation.files="
        )
    if mix.part == "held_out":
        return np.flatnonzero(held)
    known = np.unique(texts.queries[held])
    leaks = np.add.reduceat(_among(texts.documents, known), texts.offsets[:-1]) > 0
    chosen = np.flatnonzero(~(_among(texts.queries, known) | leaks))
    if not len(chosen):
        raise L2VError("data.held_out: every row has the text of a held-out query; lower it")
    return chosen


def _first_of(ranks: np.ndarray, count: int) -> np.ndarray:
    """Whether a row is one of the first by its rank: at most ``count``, and of a rank all or none."""
    _, rows, sizes = np.unique(ranks, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(sizes), dtype=bool)
    for number in np.flatnonzero(sizes <= count):
        if sizes[number] <= count:
            chosen[number] = True
            count -= int(sizes[number])
        if not count:
            break
    return chosen[rows]


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each value is one of ``known``, which is sorted; quick where ``known`` is small."""
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values


def _mix_bits(values: np.ndarray, seed: int) -> np.ndarray:
    """Numbers without an order that tells of the values or of another seed's (the finalizer of SplitMix64)."""
    mixed = values.astype(np.uint64) ^ np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
