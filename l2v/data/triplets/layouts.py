"""Training files of other trainers, as they are: which columns they have, and what stands for a text in them."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2v.data.delimited import delimited
from l2v.data.files import ending
from l2v.data.readers import Record, number, records
from l2v.data.triplets.corpus import Corpus, named_corpora, passage
from l2v.data.triplets.options import BEIR_FILES, TripletSet
from l2v.errors import L2VError
from l2v.progress import say

Values = dict[str, Any]


@dataclass(frozen=True)
class _Layout:
    """Columns of a trainer's files; of several names that a column may have, the first that is there."""

    title: str
    query: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    positive_score: str | None = None
    negative_scores: str | None = None
    score: str | None = None
    prompt: str | None = None
    ids: bool = False
    """Whether documents are ids of a corpus."""

    def fits(self, names: Iterable[str]) -> bool:
        have = set(names)
        return bool(have & set(self.query)) and bool(have & set(self.positive))


_LAYOUTS = {
    "flagembedding": _Layout(
        "FlagEmbedding's (query, pos, neg)", ("query",), ("pos",), ("neg",), "pos_scores", "neg_scores", prompt="prompt"
    ),
    "tevatron": _Layout(
        "Tevatron's (positive_passages, negative_passages)",
        ("query", "query_text"),
        ("positive_passages",),
        ("negative_passages",),
    ),
    "tevatron-ids": _Layout(
        "Tevatron's with a corpus (positive_document_ids, negative_document_ids)",
        ("query_text", "query"),
        ("positive_document_ids",),
        ("negative_document_ids",),
        ids=True,
    ),
    "nemo": _Layout(
        "NeMo's (question, pos_doc, neg_doc)", ("question", "query"), ("pos_doc",), ("neg_doc",)
    ),
    "sentence-transformers": _Layout(
        "sentence-transformers' (anchor, positive, negative_1, ...)",
        ("anchor", "query", "question"),
        ("positive", "answer"),
        score="score",
    ),
}  # fmt: skip
_NEGATIVE = re.compile(r"negative(_?\d+)?")
_MSMARCO = ("query", "positive", "negative")


def laid_out(one: TripletSet, *, show: bool) -> tuple[TripletSet, Iterator[Record]]:
    """A set with the names of its columns settled, and its records with a text, or a list of texts, in each.

    Args:
        one: the set; ``format`` of None: as its first row tells.
        show: progress bars, and in one line what the files were taken for.

    Raises:
        L2VError: the files are of no known layout, or have ids of a corpus that is not given.
    """
    if one.format == "own":
        return one, _as_named(one, show)
    if one.layout in ("beir", "msmarco"):
        for other in ("hub", "corpus"):
            if getattr(one, other) is not None:
                raise L2VError(f"{one.override}.format={one.layout}: of files, and {one.override}.{other} is given")
    paths = one.paths()
    if one.layout == "beir":
        _told(one, "a BEIR folder (corpus, queries, qrels)", show)
        return _own_columns(one), _beir(*paths)
    if one.format == "msmarco":
        _told(one, "MS MARCO's triples (query, positive, negative; no header, no quoting)", show)
        return _own_columns(one), _msmarco(paths, f"{one.override}.format=msmarco")
    names = one.column_names()
    if one.format is None and (names is None or {one.query, one.positive} <= set(names)):
        if names is not None and "negative" not in names and one.negative == "negative":
            numbered = sorted((n for n in names if _NEGATIVE.fullmatch(n)), key=_number)
            if numbered:
                _told(one, _LAYOUTS["sentence-transformers"].title, show)
                one = replace(one, negative=numbered)
                return one, _with_all_negatives(one, _as_named(one, show))
        return one, _as_named(one, show)
    found = [key for key, layout in _LAYOUTS.items() if names is not None and layout.fits(names)]
    wanted = [key for key in found if one.format in (None, key.removesuffix("-ids"))]
    if not wanted:
        if one.format is None:
            return one, _as_named(one, show)  # which names the column that is missing, and how to name it
        told = ", ".join(names or ()) or "none"
        raise L2VError(f"{one.override}.format={one.format}: {one.hub or paths[0]} has other columns: {told}")
    layout = _LAYOUTS[wanted[0]]
    corpora = named_corpora(paths) if wanted[0] == "nemo" else []
    _told(one, layout.title, show)
    settled = _settled(one, layout, names or [])
    corpora = corpora or one.corpus_paths()
    convert = _texts(settled, corpora, ids=layout.ids or bool(corpora))
    rows = settled.records(show=show)
    if layout is _LAYOUTS["sentence-transformers"] and one.negative == "negative":
        rows = _with_all_negatives(settled, rows)
    return settled, (_converted(record, convert) for record in rows)


def _as_named(one: TripletSet, show: bool) -> Iterator[Record]:
    """The rows by the columns that the set names; with a corpus they have its documents' ids."""
    found = one.records(show=show)
    if one.corpus is None:
        return found
    convert = _texts(one, one.corpus_paths(), ids=True)
    return (_converted(record, convert) for record in found)


def _with_all_negatives(one: TripletSet, found: Iterator[Record]) -> Iterator[Record]:
    """The rows, which may do without some of the numbered negatives; those that have another one are broken."""
    for record in found:
        if record.problem is None and isinstance(record.values, dict):
            record = record._replace(values=dict.fromkeys(one.negatives) | record.values)
            more = [name for name in record.values if _NEGATIVE.fullmatch(str(name)) and name not in one.negatives]
            if more:
                told = f"a column {more[0]!r}, which the first rows have not; name all by {one.override}.negative"
                record = record._replace(problem=told)
        yield record


def _told(one: TripletSet, title: str, show: bool) -> None:
    if show:
        say(f"{one.name}: read as {title}; {one.override}.format=own takes the columns as they are named")


def _own_columns(one: TripletSet) -> TripletSet:
    return replace(one, query="query", positive="positive", negative="negative", negative_scores=None)


def _settled(one: TripletSet, layout: _Layout, names: list[str]) -> TripletSet:
    """The set with the columns that its files have; what the set names itself stays."""
    optional = (*layout.negative, layout.positive_score, layout.negative_scores, layout.prompt)
    # rows of objects may do without a column that others have
    there = {*names, *(optional if one.hub is None and ending(one.paths()[0]) == ".jsonl" else ())}
    first = {key: next((n for n in getattr(layout, key) if n in there), None) for key in ("query", "positive")}
    negatives = [name for name in layout.negative if name in there]
    if layout is _LAYOUTS["sentence-transformers"]:
        negatives = sorted((name for name in names if _NEGATIVE.fullmatch(name)), key=_number)
    known = {key: name if (name := getattr(layout, key)) in there else None for key in ("positive_score", "score")}
    scores = [name] if (name := layout.negative_scores) is not None and name in there and negatives else None
    prompt = layout.prompt if layout.prompt in there else None
    of_layout: dict[str, Any] = {**first, **known, "negative": negatives, "negative_scores": scores, "prompt": prompt}
    as_usual = {"query": "query", "positive": "positive", "negative": "negative"}
    own = {key for key in of_layout if getattr(one, key) != as_usual.get(key)}
    if "negative" in own:
        of_layout["negative_scores"] = None
    return replace(one, **{key: value for key, value in of_layout.items() if key not in own})


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)


# what stands for a text


def _texts(one: TripletSet, corpora: list[Path], *, ids: bool) -> Callable[[Values], Values]:
    """Makes texts of the documents of a row, and fills columns that it has not."""
    corpus = Corpus(corpora) if ids and corpora else None
    if ids and corpus is None:
        raise L2VError(f"{one.override}.corpus: must be given: the file of the documents whose ids the rows have")

    def text(document: Any) -> Any:
        if corpus is None:
            return passage(document)
        key = document.get("id", document.get("docid")) if isinstance(document, dict) else document
        return corpus.text(str(key))

    def convert(values: Values) -> Values:
        made = dict.fromkeys(one.columns) | values
        for column in (one.positive, *one.negatives):
            documents = made.get(str(column))
            if isinstance(documents, list):
                made[str(column)] = [text(document) for document in documents]
            elif documents not in (None, ""):  # an id may be 0
                made[str(column)] = text(documents)
        return made

    return convert


def _converted(record: Record, convert: Callable[[Values], Values]) -> Record:
    if record.problem is not None or not isinstance(record.values, dict):
        return record
    try:
        return record._replace(values=convert(record.values))
    except KeyError as error:
        return record._replace(problem=f"the corpus has no document {error.args[0]!r}")
    except ValueError as error:
        return record._replace(problem=str(error))


# files of more than rows


def _beir(corpus_file: Path, queries_file: Path, qrels_file: Path) -> Iterator[Record]:
    corpus, queries = Corpus([corpus_file]), Corpus([queries_file])
    judged: dict[str, tuple[str, list[str], list[str]]] = {}
    for where, values, problem in records(qrels_file, ("query-id", "corpus-id", "score"), str(qrels_file)):
        if problem:
            raise L2VError(f"{where}: {problem}")
        try:
            score = number(values["score"])
        except ValueError as error:
            raise L2VError(f"{where}: {error}") from None
        row = judged.setdefault(values["query-id"], (where, [], []))
        (row[1] if score > 0 else row[2]).append(values["corpus-id"])
    for query, (where, positives, negatives) in judged.items():
        if not positives:
            continue
        try:
            documents = {
                "positive": [corpus.text(d) for d in positives],
                "negative": [corpus.text(d) for d in negatives],
            }
            yield Record(where, {"query": queries.text(query), **documents})
        except KeyError as error:
            yield Record(where, None, f"{BEIR_FILES[0]} or {BEIR_FILES[1]} has no {error.args[0]!r}")


def _msmarco(paths: list[Path], override: str) -> Iterator[Record]:
    for path in paths:
        for line, fields, problem in delimited(path, "\t", quotes=False, way_out=""):
            where = f"{path}:{line}"
            if problem is None and len(fields) != len(_MSMARCO):
                problem = f"{len(fields)} fields; expected query, positive and negative"
            if problem is None and all(field.isdigit() for field in fields):
                raise L2VError(f"{where}: {override}: ids, and no texts; take the triples with texts")
            yield Record(where, dict(zip(_MSMARCO, fields, strict=False)), problem)
