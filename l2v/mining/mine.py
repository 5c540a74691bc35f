"""Hard negatives for pairs: what an encoder ranks high for a query, without what is likely to be relevant itself.

Thresholds are positive-aware (NV-Retriever, arXiv 2407.15831): a candidate is judged against the score of the query's
own positive.
"""

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2v.encoders.load import load_encoder, with_template
from l2v.encoders.text_encoder import TextEncoder
from l2v.errors import L2VError
from l2v.mining.search import top_k
from l2v.mining.selection import judge, pick
from l2v.mining.settings import Mining
from l2v.mining.texts import Table, Texts, distinct, find, read_table
from l2v.mining.vectors import Vectors, encode_texts
from l2v.models.settings import EncoderSettings
from l2v.progress import say, track
from l2v.runs.files import cache_folder, check_writable, draft_file, read_json, remove_drafts, write_json
from l2v.runs.hashes import file_hash, settings_hash

_VERSION = 3
"""Part of the fingerprints: raise it when the same settings would give other vectors or negatives."""


@dataclass(frozen=True)
class _Data:
    """Pairs by number: their texts, and where those are among the different queries and documents."""

    pairs: Table
    queries: Texts
    corpus: Texts
    """Documents that may become negatives."""
    others: Texts
    """Positives that are not in the corpus."""
    rows: NDArray[np.int64]
    """(pairs,) their rows in the table, sorted by query; equal pairs once."""
    query: NDArray[np.int64]
    """(pairs,) numbers in ``queries``."""
    document: NDArray[np.int64]
    """(pairs,) numbers in ``corpus``, and from ``len(corpus)`` on in ``others``."""
    known: NDArray[np.int64]
    """Sorted ``query * len(corpus) + document`` of what must not be mined: positives and the query's own text."""
    keys: NDArray[np.uint64]
    """(pairs, 2) of the query's text and the positive's."""
    counts: dict[str, int]


@dataclass
class _Tally:
    """Counts and sums over pairs."""

    used: NDArray[np.int32]
    """(documents,) how often each became a negative."""
    written: int = 0
    without: int = 0
    negatives: int = 0
    candidates: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    positive_first: int = 0
    """Pairs whose positive scores above every candidate."""
    positive_score: float = 0.0
    candidate_score: float = 0.0
    negative_score: float = 0.0


def mine(subject: EncoderSettings, mining: Mining, *, show: bool = True) -> dict[str, Any]:
    """Write triplets to ``mining.output`` and return the summary, which is also written beside it.

    A line of the output holds query, positive, negative (a list, highest score first), positive_score and
    negative_scores (cosines). Pairs stand in the order in which their query comes first; equal pairs once, and pairs
    without a negative not at all. Vectors are kept in ``mining.cache`` and reused by whoever mines with the same
    encoder and texts, also after a stop. An output of the same encoder, texts and settings is left as it is.

    Raises:
        L2VError: the encoder cannot be loaded, a line cannot be read, or no pair has a negative.
    """
    begin = time.monotonic()
    output = Path(mining.output).expanduser()
    summary_file = output.with_suffix(".summary.json")
    subject = with_template(subject)
    encoder_print = _hashed(subject.fingerprint())
    fingerprint = _hashed([encoder_print, mining.fingerprint()])
    if output.exists() and summary_file.exists():
        known: dict[str, Any] = read_json(summary_file)
        if known.get("fingerprint") == fingerprint:
            if known.get("sha256") == file_hash(output):
                say(f"{output}: reused, nothing has changed")
                return known
            say(f"{output}: is not as it was written, and is made anew", style="yellow")
    check_writable(output)
    cache = Path(mining.cache).expanduser() if mining.cache else cache_folder("mining")
    data = _read(mining, cache / "texts", show)

    @functools.cache
    def encoder() -> TextEncoder:
        return load_encoder(subject)

    def encoded(texts: Texts, title: str, instruction: str | None, *also: str) -> Vectors:
        key = [encoder_print, texts.table.fingerprint, texts.column, also, instruction, mining.vector_dtype]
        return encode_texts(
            texts,
            encoder,
            cache / "vectors" / _hashed(key),
            instruction=instruction,
            batch_size=mining.batch_size,
            dtype=mining.vector_dtype,
            title=title,
            show=show,
        )

    queries = encoded(data.queries, "encoding queries", mining.query_instruction)
    corpus = encoded(data.corpus, "encoding corpus", mining.document_instruction)
    others = encoded(
        data.others, "encoding positives", mining.document_instruction, "not in", data.corpus.table.fingerprint
    )
    tally = _Tally(np.zeros(len(data.corpus), np.int32))
    remove_drafts(output.parent)
    with draft_file(output) as draft, draft.open("w", encoding="utf-8") as file:
        for row in _triplets(data, mining, queries, corpus, others, tally, show):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not tally.written:
            raise L2VError(_none_left(tally, mining))
        summary_file.unlink(missing_ok=True)  # it belongs to the output that is replaced now
    summary = {
        "fingerprint": fingerprint,
        "encoder": subject.source,
        "settings": {name: value for name, value in asdict(mining).items() if name != "cache"},
        "seconds": round(time.monotonic() - begin, 1),
        "sha256": file_hash(output),
        **data.counts,
        **_means(tally),
    }
    write_json(summary_file, summary)
    return summary


def describe(summary: dict[str, Any]) -> str:
    """A summary for people."""
    dropped, score = summary["dropped"], summary["score"]
    percent = 100 / max(summary["candidates"], 1)
    lines = [
        f"{summary['written']} of {summary['pairs']} pairs have {summary['negatives']} hard negatives; "
        f"{summary['without_negative']} have none and are left out",
        f"the negatives are {summary['different_negatives']} of {summary['documents']} documents; one of them serves "
        f"{summary['most_used_negative']} pairs",
        f"candidates: {summary['candidates']} looked at"
        + "".join(f", {count} ({count * percent:.1f}%) dropped by {rule}" for rule, count in dropped.items()),
        f"known positives and own texts, never candidates: {summary['known_positives']} and {summary['own_texts']}",
        f"left out as empty or equal: {summary['empty']} rows, {summary['equal_pairs']} pairs, "
        f"{summary['equal_documents']} documents",
        f"mean cosine: positives {score['positive']:.4f}, candidates {score['candidate']:.4f}, "
        f"negatives {score['negative']:.4f}; the positive scores highest for {100 * summary['positive_first']:.1f}%",
    ]
    if summary["without_negative"] > summary["written"]:
        lines.append("most pairs have no negative: " + _ADVICE)
    return "\n".join(lines)


_ADVICE = (
    "this encoder scores positives and other texts alike; take one that was trained for retrieval, raise range_max, or "
    "take percentage_margin=null absolute_margin=0.02"
)


def _read(mining: Mining, folder: Path, show: bool) -> _Data:
    columns = {mining.query_column: "query_column", mining.positive_column: "positive_column"}
    pairs = read_table(mining.pair_files(), columns, folder, title="reading pairs", show=show)
    query_keys, positive_keys = pairs.keys(mining.query_column), pairs.keys(mining.positive_column)
    query_rows, query = distinct(query_keys)
    queries = Texts(pairs, mining.query_column, query_rows)
    positive_rows, positive = distinct(positive_keys)
    positives = Texts(pairs, mining.positive_column, positive_rows)
    empty = pairs.empty
    if mining.corpus:
        named = {mining.corpus_column: "corpus_column"}
        table = read_table(mining.corpus_files(), named, folder, title="reading corpus", show=show)
        corpus_keys = table.keys(mining.corpus_column)
        corpus = Texts(table, mining.corpus_column, distinct(corpus_keys)[0])
        equal_documents, empty = len(corpus_keys) - len(corpus), empty + table.empty
    else:
        corpus, equal_documents = positives, len(pairs.data) - len(positives)
    place = find(positives.keys(), corpus.keys())
    absent = np.flatnonzero(place < 0)
    place[absent] = len(corpus) + np.arange(len(absent))
    document = place[positive]

    rows = np.sort(distinct(query * len(positives) + positive)[0])  # equal pairs once, in the order of the files
    rows = rows[query[rows].argsort(kind="stable")]
    in_corpus = rows[document[rows] < len(corpus)]
    known = np.unique(query[in_corpus] * len(corpus) + document[in_corpus])
    own = find(queries.keys(), corpus.keys())
    own = np.flatnonzero(own >= 0) * len(corpus) + own[own >= 0]
    both = np.union1d(known, own)
    counts = {
        "pairs": len(rows),
        "queries": len(queries),
        "documents": len(corpus),
        "empty": empty,
        "equal_pairs": len(pairs.data) - len(rows),
        "equal_documents": equal_documents,
        "known_positives": len(known),
        "own_texts": len(both) - len(known),
    }
    others = Texts(pairs, mining.positive_column, positive_rows[absent])
    keys = np.stack([query_keys[rows], positive_keys[rows]], axis=1).view(np.uint64)
    return _Data(pairs, queries, corpus, others, rows, query[rows], document[rows], both, keys, counts)


def _triplets(
    data: _Data, mining: Mining, queries: Vectors, corpus: Vectors, others: Vectors, tally: _Tally, show: bool
) -> Iterator[dict[str, Any]]:
    """Rows of the output, a block of queries after the other."""
    count, size = len(data.corpus), mining.query_block
    device = "cuda" if torch.cuda.is_available() and mining.search == "torch" else "cpu"
    for begin in track(range(0, queries.count, size), "searching", show=show):
        end = min(begin + size, queries.count)
        vectors = queries.block(begin, end)
        scores, found = top_k(
            vectors,
            corpus,
            min(mining.range_max, count),
            excluded=_between(data.known, begin * count, end * count) - begin * count,
            block=mining.corpus_block,
            backend=mining.search,
            device=device,
        )
        first, last = np.searchsorted(data.query, [begin, end])
        for start in range(first, last, size):  # a query may have any number of positives
            part = slice(start, min(start + size, last))
            query = data.query[part] - begin
            positive = _positive_scores(vectors[query], data.document[part], corpus, others)
            yield from _choose(data, mining, part, query, positive, scores, found, tally)


def _positive_scores(
    queries: NDArray[np.float32], documents: NDArray[np.int64], corpus: Vectors, others: Vectors
) -> NDArray[np.float32]:
    positives = np.empty_like(queries)
    inside = documents < corpus.count
    if inside.any():
        positives[inside] = corpus.at(documents[inside])
    if not inside.all():
        positives[~inside] = others.at(documents[~inside] - corpus.count)
    return np.einsum("pd,pd->p", queries, positives)


def _choose(
    data: _Data,
    mining: Mining,
    part: slice,
    query: NDArray[np.int64],
    positive: NDArray[np.float32],
    scores: NDArray[np.float32],
    found: NDArray[np.int64],
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    """Rows for some pairs, from the ranks of their queries."""
    rows = data.rows[part]
    picked = []
    for number in range(len(rows)):
        ranked, documents = scores[query[number]], found[query[number]]
        tally.positive_first += bool(positive[number] >= ranked[0])
        keep = judge(ranked, float(positive[number]), mining, tally.dropped)
        looked = ranked[mining.range_min :][documents[mining.range_min :] >= 0]
        tally.candidates += len(looked)
        tally.candidate_score += float(looked.sum())
        picked.append(pick(keep, mining, seeds=data.keys[part.start + number].tolist()))
    texts = _texts_of(data.corpus, [found[q, ranks] for q, ranks in zip(query, picked, strict=True)])
    table = data.pairs.data[rows.tolist()]
    for number, ranks in enumerate(picked):
        if not len(ranks):
            tally.without += 1
            continue
        chosen = scores[query[number], ranks]
        tally.written += 1
        tally.negatives += len(ranks)
        tally.used[found[query[number], ranks]] += 1
        tally.positive_score += float(positive[number])
        tally.negative_score += float(chosen.sum())
        yield {
            "query": table[mining.query_column][number],
            "positive": table[mining.positive_column][number],
            "negative": texts[number],
            "positive_score": round(float(positive[number]), 5),
            "negative_scores": [round(float(score), 5) for score in chosen],
        }


def _texts_of(corpus: Texts, wanted: list[NDArray[np.int64]]) -> list[list[str]]:
    """The texts of each list of documents, every document read once."""
    numbers = np.unique(np.concatenate(wanted)) if wanted else np.empty(0, np.int64)
    texts = dict(zip(numbers.tolist(), corpus.at(numbers), strict=True)) if len(numbers) else {}
    return [[texts[document] for document in documents.tolist()] for documents in wanted]


def _between(values: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
    first, last = np.searchsorted(values, [begin, end])
    return values[first:last]


def _means(tally: _Tally) -> dict[str, Any]:
    return {
        "written": tally.written,
        "without_negative": tally.without,
        "negatives": tally.negatives,
        "different_negatives": int(np.count_nonzero(tally.used)),
        "most_used_negative": int(tally.used.max()),
        "candidates": tally.candidates,
        "dropped": tally.dropped,
        "score": {
            "positive": tally.positive_score / tally.written,
            "candidate": tally.candidate_score / tally.candidates,
            "negative": tally.negative_score / tally.negatives,
        },
        "positive_first": tally.positive_first / (tally.written + tally.without),
    }


def _none_left(tally: _Tally, mining: Mining) -> str:
    if not tally.candidates:
        return f"no pair has a candidate from rank range_min={mining.range_min} on; give a larger corpus="
    return f"all {tally.candidates} candidates were dropped: {_ADVICE}"


def _hashed(value: Any) -> str:
    return settings_hash([_VERSION, value], digits=24)
