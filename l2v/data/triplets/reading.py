"""Rows of a data set as clean texts: a query, its positive, its hard negatives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

from l2v.data.order import seed_of
from l2v.data.readers import as_text, number_hint
from l2v.data.triplets.layouts import laid_out
from l2v.data.triplets.options import TripletMix, TripletSet
from l2v.errors import L2VError
from l2v.text.instructions import without_end
from l2v.text.tokenization import clean

_PLACES_KEPT = 20


def triplet_texts(mix: TripletMix, *, show: bool = True) -> Iterator[str]:
    """Queries and documents of all rows of a mix, those that are held out among them, without instructions.

    Raises:
        L2VError: a broken row, where ``on_error`` is fatal.
    """
    for one in mix.resolved():
        for row in read_triplets(one, Counts(), show=show):
            yield row.query
            yield from row.documents


@dataclass
class Counts:
    """What reading a set found."""

    rows: int = 0
    broken: int = 0
    places: list[str] = field(default_factory=list)
    """Of the first broken rows, with what is wrong."""
    negatives: int = 0
    negatives_dropped: int = 0
    """Negatives that repeat the query, the positive or another negative of their row."""

    def line(self, name: str) -> str:
        told = f"{name}: {self.rows:,} rows, {self.negatives:,} hard negatives"
        if self.negatives_dropped:
            told += f"; {self.negatives_dropped:,} negatives left out that repeat a text of their row"
        if self.broken:
            told += f"; {self.broken:,} broken rows skipped, the first: {self.places[0]}"
        return told


class Triplet(NamedTuple):
    """A row of a set, cleaned."""

    number: int
    """Of the row in the set, broken ones counted in; it chooses the instruction's wording."""
    query: str
    documents: list[str]
    """The positive and the hard negatives."""
    score: float
    document_scores: list[float]
    """A teacher's, of each document; NaN where unknown."""
    instruction: str | None = None
    """The row's own, for its query."""


class _BrokenRow(Exception):
    pass


def read_triplets(one: TripletSet, counts: Counts, *, show: bool) -> Iterator[Triplet]:
    """The rows of a set that are used; one of several positives comes once with each of them."""
    number = -1
    one, found = laid_out(one, show=show)
    for where, values, problem in found:
        try:
            if problem is not None:
                raise _BrokenRow(problem)
            if one.task and _field(values, one.task, f"{one.override}.task") != one.name:
                continue
            number += 1
            if one.share is not None and one.share < 1 and not _is_shared(one, number):
                continue
            triplets, dropped = _triplets(one, number, values)
        except _BrokenRow as error:
            number += problem is not None
            if one.on_error == "fatal":
                hint = f"{one.override}.on_error=skip leaves such rows out"
                raise L2VError(f"{where}: {error}; mend it, or {hint}") from None
            counts.broken += 1
            if len(counts.places) < _PLACES_KEPT:
                counts.places.append(f"{where}: {error}")
        else:
            counts.negatives += sum(len(triplet.documents) - 1 for triplet in triplets)
            counts.negatives_dropped += dropped
            yield from triplets


def _is_shared(one: TripletSet, number: int) -> bool:
    return seed_of(one.seed, "share", number) < (one.share or 1) * 2**63


def _triplets(one: TripletSet, number: int, values: Any) -> tuple[list[Triplet], int]:
    """A row's texts, once for each of its positives, and how many negatives were left out.

    A negative that equals a positive would push away what is to be pulled close; one that equals the query would
    have the highest score of all, whatever the model; one that is there twice would count twice.
    """
    assert one.query is not None and one.positive is not None
    query = _text(one, values, one.query, f"{one.override}.query")
    positives: dict[str, float] = {}
    texts = _positives(one, values)
    for text, teacher in zip(texts, _positive_scores(one, values, len(texts)), strict=True):
        positives.setdefault(text, teacher)
    negatives = _negatives(one, values)
    kept: dict[str, float] = {}
    for text, teacher in negatives:
        if text != query and text not in positives:
            kept.setdefault(text, teacher)
    score = math.nan
    if one.score is not None:
        score = _known(_field(values, one.score, f"{one.override}.score"), one.score)
    instruction = _instruction(one, values)
    triplets = [
        Triplet(number, query, [positive, *kept], score, [own, *kept.values()], instruction)
        for positive, own in positives.items()
    ]
    return triplets, len(negatives) - len(kept)


def _positives(one: TripletSet, values: Any) -> list[str]:
    """The text, or the texts, of the positive column."""
    column = str(one.positive)
    found = _field(values, column, f"{one.override}.positive")
    if not isinstance(found, list):
        return [_text(one, values, column, f"{one.override}.positive")]
    if not found:
        raise _BrokenRow(f"the list under {column!r} is empty")
    return [_text(one, {column: text}, column, f"{one.override}.positive") for text in found]


def _positive_scores(one: TripletSet, values: Any, count: int) -> list[float]:
    if one.positive_score is None:
        return [math.nan] * count
    found = _field(values, one.positive_score, f"{one.override}.positive_score")
    if found in (None, "", []):
        return [math.nan] * count
    given = found if isinstance(found, list) else [found]
    if len(given) != count:
        raise _BrokenRow(f"expected {count} numbers under {one.positive_score!r}, found {found!r}")
    return [_known(teacher, one.positive_score) for teacher in given]


def _instruction(one: TripletSet, values: Any) -> str | None:
    """A row's own, as an encoder takes it; the set's, where it has some, are said by the user and stand above it."""
    if one.prompt is None or one.query_instructions:
        return None
    found = _field(values, one.prompt, f"{one.override}.prompt")
    return without_end(found) or None if isinstance(found, str) else None


def _negatives(one: TripletSet, values: Any) -> list[tuple[str, float]]:
    """The texts of the negative columns, with their scores.

    Null is none; so is an empty text, where there are several columns.
    """
    override = f"{one.override}.negative"
    found: list[tuple[str, float]] = []
    for column, scored in zip_longest(one.negatives, one.score_columns):
        value = _field(values, column, f"{override} (null: pairs)")
        if value is None or (value == "" and len(one.negatives) > 1):
            continue
        texts = value if isinstance(value, list) else [value]
        scores = [math.nan] * len(texts) if scored is None else _scores(one, values, scored, len(texts))
        found += [
            (_text(one, {column: text}, column, override), score) for text, score in zip(texts, scores, strict=True)
        ]
    return found


def _scores(one: TripletSet, values: Any, column: str, count: int) -> list[float]:
    """The numbers of a column of negatives' scores, as many as there are texts. Null: all are unknown."""
    found = _field(values, column, f"{one.override}.negative_scores")
    if found in (None, "", []):
        return [math.nan] * count
    numbers = found if isinstance(found, list) else [found]
    if len(numbers) != count:
        raise _BrokenRow(f"expected a number under {column!r} for each of {count} negatives, found {found!r}")
    return [_known(number, column) for number in numbers]


def _known(found: Any, column: str) -> float:
    """A number, NaN where there is none."""
    return math.nan if found in (None, "") else _number(found, column)


def _number(found: Any, column: str) -> float:
    try:
        return float(found)
    except (TypeError, ValueError):
        raise _BrokenRow(f"expected a number under {column!r}, found {found!r}") from None


def _field(values: Any, column: str, override: str) -> Any:
    if not isinstance(values, dict):
        raise _BrokenRow(f"expected an object with {column!r}, found {type(values).__name__}")
    if column not in values:
        names = ", ".join(map(str, values)) or "none"
        raise _BrokenRow(f"no column {column!r} (it has {names}); name the column with {override}")
    return values[column]


def _text(one: TripletSet, values: Any, column: str, override: str) -> str:
    found = as_text(_field(values, column, override), one.how)
    if not isinstance(found, str):
        way_out = f" ({hint})" if (hint := number_hint(found)) else ""
        raise _BrokenRow(f"expected a text under {column!r}, found {type(found).__name__}{way_out}")
    text = clean(found).strip()
    if not text:
        raise _BrokenRow(f"the text under {column!r} is empty")
    return text
