"""Queries with a positive and hard negatives each: from files or the hub to token rows, read once.

A set is tokenized into an Arrow file of its own, so that a change of one set leaves the others as they are. Which rows
train and which are held out is settled when the files are opened, from the hashes of the texts.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import datasets
import numpy as np
import pyarrow
from annotated_types import Ge, Gt, Le
from transformers import PreTrainedTokenizerBase

from l2v.data.files import RECORD_FILES, Record, content, count_records, find, records
from l2v.data.order import Pick, RowTexts, seed_of
from l2v.data.rows import Rows
from l2v.data.texts import load_hub
from l2v.data.tokens import tokenizer_hash, write_rows
from l2v.errors import L2VError
from l2v.progress import say, track
from l2v.prompts import Prompt
from l2v.sources import cache_folder, draft_folder, read_json, write_json
from l2v.tokenization import Tokens, clean, tokenize

_VERSION = 1
"""Part of the cache's key: raise it when the same files would make other rows."""
_CHUNK = 500
_ROWS, _COUNTS = "rows.arrow", "counts.json"
_PLACES_KEPT = 20
_SCHEMA = pyarrow.schema(
    [
        ("query", pyarrow.list_(pyarrow.int32())),
        ("query_begin", pyarrow.int32()),
        ("documents", pyarrow.list_(pyarrow.list_(pyarrow.int32()))),
        ("document_begins", pyarrow.list_(pyarrow.int32())),
        ("score", pyarrow.float32()),
        ("query_hash", pyarrow.int64()),
        ("document_hashes", pyarrow.list_(pyarrow.int64())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Where a set's rows are and how they are read. None: as the mix says."""

    files: str | list[str] | None = None
    """A path, a glob pattern or a list of them: .jsonl, .csv, .tsv or .parquet."""
    hub: str | None = None
    """owner/name of a data set on the Hugging Face hub, in place of files."""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    data_files: str | None = None
    """What to load of the hub's data set."""
    query: str | None = None
    positive: str | None = None
    negative: str | list[str] | None = None
    """Columns. A negative column holds a text or a list of texts; several columns, a text each; []: pairs."""
    score: str | None = None
    """A column of numbers, kept with the row."""
    task: str | None = None
    """The column that says which set a row belongs to, where a file holds several: a set takes the rows of its name."""
    query_instructions: str | list[str] | None = None
    """One wording or several, which take turns: row n of the set has wording n modulo their number."""
    document_instruction: str | None = None
    symmetric: bool | list[bool] | None = None
    """Whether documents are of the same kind as queries, and get the query's instruction; or that for each wording."""
    share: Annotated[float, Gt(0), Le(1)] | None = None
    """Fraction of the rows to use: a fixed seeded choice."""
    on_error: Literal["fatal", "skip"] | None = None
    """What to do about a row that cannot be read, has a field missing or an empty text."""


@dataclass(frozen=True, kw_only=True)
class TripletSet(SetOptions):
    """One data set of a mix, with every option settled."""

    name: str
    override: str
    """What an error names, e.g. data.sets.nli."""
    seed: int
    symmetric_documents: bool

    def __post_init__(self) -> None:
        if self.files is None and self.hub is None:
            raise L2VError(f"{self.override}.files: must be given (or {self.override}.hub)")
        if self.files is not None and self.hub is not None:
            raise L2VError(f"{self.override}.files and {self.override}.hub exclude each other; give one")
        self.paths()
        wordings = self.wordings
        if isinstance(self.symmetric, list) and len(self.symmetric) != len(wordings):
            raise L2VError(
                f"{self.override}.symmetric: expected one value or one for each of {len(wordings)} "
                f"query_instructions, found {len(self.symmetric)}"
            )

    def paths(self) -> list[Path]:
        return find(self.files, f"{self.override}.files") if self.files is not None else []

    @property
    def wordings(self) -> list[str | None]:
        """Instructions of the queries, at least one; None is no instruction."""
        given = self.query_instructions
        wordings: list[str | None] = [given] if isinstance(given, str) else [*(given or ())]
        return wordings or [None]

    @property
    def negatives(self) -> list[str]:
        """Columns of the hard negatives."""
        return [self.negative] if isinstance(self.negative, str) else self.negative or []

    @property
    def columns(self) -> list[str]:
        named = [self.query, self.positive, *self.negatives, self.score, self.task]
        return [name for name in named if name is not None]

    def instructions(self, number: int) -> tuple[str | None, str | None]:
        """Those of the query and of the documents of row ``number``."""
        turn = number % len(self.wordings)
        symmetric = self.symmetric[turn] if isinstance(self.symmetric, list) else self.symmetric
        if symmetric:
            return self.wordings[turn], self.wordings[turn] if self.symmetric_documents else None
        return self.wordings[turn], self.document_instruction

    def fingerprint(self) -> str:
        """Of the files' bytes and of every option that makes the rows."""
        options = dataclasses.asdict(self)
        for key in ("files", "override", *(() if self.task else ("name",)), *(() if self.share != 1 else ("seed",))):
            del options[key]
        return content(self.paths()) + json.dumps(options, sort_keys=True)

    def records(self, *, show: bool) -> Iterator[Record]:
        """The rows as they are in the files or on the hub, with a progress bar."""
        title = f"reading {self.name}"
        if self.hub is not None:
            data = load_hub(
                self.hub,
                self.config,
                self.split or "train",
                self.revision,
                self.data_files,
                columns=self.columns,
                override=f"{self.override}.hub",
            )
            named = (Record(f"{self.hub}:{number}", row) for number, row in enumerate(data, 1))
            yield from track(named, title, total=len(data), show=show)
            return
        paths = self.paths()
        counts = [count_records(path) for path in paths]
        total = None if None in counts else sum(count or 0 for count in counts)
        all_records = (
            r for path in paths for r in records(path, self.columns, self.override + ".query/positive/negative")
        )
        yield from track(all_records, title, total=total, show=show)


@dataclass(frozen=True, kw_only=True)
class TripletMix(SetOptions):
    """Data sets to train or to validate on; what a set does not say itself it has from here.

    One set is given by ``files`` or ``hub``; several by ``sets``, whose files are ``folder``/<name>.<ending> where they
    name none; ``folder`` alone makes a set of every file in it.
    """

    part: Literal["train", "held_out"]
    folder: str | None = None
    sets: dict[str, SetOptions] = field(default_factory=dict)
    held_out: Annotated[int, Ge(0)] = 256
    """Rows of each set (but at most a tenth) that validate and are never trained on; 0: every row is in both parts."""
    alpha: Annotated[float, Ge(0), Le(1)] = 1.0
    """A set's share of the batches goes as its size to this power: 1 proportional, 0 the same for all sets."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the choice of held-out rows and of shares."""
    symmetric_documents: bool = True
    """False: documents of symmetric sets get no instruction, as in the reference implementation."""
    query: str | None = "query"
    positive: str | None = "positive"
    negative: str | list[str] | None = "negative"
    """None, here: pairs without hard negatives."""
    symmetric: bool | list[bool] | None = False
    share: Annotated[float, Gt(0), Le(1)] | None = 1.0
    on_error: Literal["fatal", "skip"] | None = "fatal"
    override: str = "data.train"
    """What an error names."""

    def __post_init__(self) -> None:
        self.resolved()

    @property
    def names(self) -> list[str]:
        """The names of the sets; a row's ``set`` is an index into them."""
        return list(self._sets())

    def resolved(self) -> list[TripletSet]:
        """The sets with every option settled."""
        inherited = {f.name: getattr(self, f.name) for f in dataclasses.fields(SetOptions)}
        made = []
        for name, (own, override) in self._sets().items():
            options = {k: v for k, v in vars(own).items() if v is not None}
            elsewhere = {"files": None, "hub": None} if options.keys() & {"files", "hub"} else {}
            made.append(
                TripletSet(
                    **(inherited | elsewhere | options),
                    name=name,
                    override=override,
                    seed=self.seed,
                    symmetric_documents=self.symmetric_documents,
                )
            )
        return made

    def _sets(self) -> dict[str, tuple[SetOptions, str]]:
        """Name -> the set's own options, and what its errors name."""
        group = self.override.partition(".")[0]
        if self.sets:
            return {name: (self._placed(name, own), f"{group}.sets.{name}") for name, own in self.sets.items()}
        if self.files is not None or self.hub is not None:
            one_file = isinstance(self.files, str) and Path(self.files).expanduser().is_file()
            name = Path(str(self.files)).stem if one_file else self.hub or "triplets"
            return {name: (SetOptions(), self.override)}
        if self.folder is None:
            raise L2VError(f"{self.override}.files: must be given (or {group}.folder, or {group}.sets)")
        files = sorted(file for file in self._folder().iterdir() if file.suffix.lower() in RECORD_FILES)
        if not files:
            raise L2VError(f"{group}.folder={self.folder}: expected {', '.join(RECORD_FILES)} files, found none")
        if len({file.stem for file in files}) < len(files):
            raise L2VError(f"{group}.folder={self.folder}: two files of the same name; list them in {group}.sets")
        return {file.stem: (SetOptions(files=str(file)), f"{group}.sets.{file.stem}") for file in files}

    def _folder(self) -> Path:
        group = self.override.partition(".")[0]
        if self.folder is None:
            raise L2VError(f"{group}.folder: must be given: the folder with the files of {group}.sets")
        if not (folder := Path(self.folder).expanduser()).is_dir():
            raise L2VError(f"{group}.folder={self.folder}: no such folder; it holds the files of {group}.sets")
        return folder

    def _placed(self, name: str, own: SetOptions) -> SetOptions:
        """A set's options with its file in the folder, where it names none."""
        if own.files is not None or own.hub is not None or (self.task and (self.files or self.hub)):
            return own
        folder = self._folder()
        found = [folder / (name + ending) for ending in RECORD_FILES if (folder / (name + ending)).is_file()]
        if not found:
            group = self.override.partition(".")[0]
            raise L2VError(f"{group}.folder={self.folder}: no {name}.jsonl (.csv, .tsv, .parquet) in it")
        return replace(own, files=str(found[0]))

    def fingerprint(self) -> str:
        prints = [s.fingerprint() for s in self.resolved()]
        return (
            f"triplets:{self.part}:{self.held_out}:{self.seed}:"
            + hashlib.sha256("\n".join(prints).encode()).hexdigest()
        )


def check_parts(train: Any, validation: Any) -> None:
    """That no mix validates on what it trains on.

    Raises:
        L2VError: the same rows in both, or rows held out for nothing.
    """
    if not (isinstance(train, TripletMix) and isinstance(validation, TripletMix)):
        return
    same = [replace(s, override="") for s in train.resolved()] == [
        replace(s, override="") for s in validation.resolved()
    ]
    if same and train.held_out == 0:
        raise L2VError("data.held_out=0: nothing to validate on; raise it, or name data.validation.files=")
    if same and (train.held_out, train.seed) != (validation.held_out, validation.seed):
        raise L2VError("data.train and data.validation: expected the same held_out and seed; set data.held_out")
    if not same and train.held_out > 0:
        raise L2VError("data.validation has files of its own; set data.held_out=0, so that all of data.train trains")


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

    def texts(self) -> RowTexts:
        """Which texts each row has, for an order without false negatives."""
        assert self.index is not None
        return _row_texts(self.data, self.bounds).take(self.index)


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
    return TripletRows(data, _choose(mix, data, bounds), bounds, mix)


def triplet_texts(mix: TripletMix, *, show: bool = True) -> Iterator[str]:
    """Queries and documents of all rows of a mix, those that are held out among them, without instructions.

    Raises:
        L2VError: a broken row, where ``on_error`` is fatal.
    """
    for one in mix.resolved():
        for row in _triplets(one, Counts(), show=show):
            yield row.query
            yield from row.documents


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
    if (folder / _ROWS).exists():
        return folder
    counts = Counts()
    with draft_folder(folder) as draft:
        triplets = _triplets(one, counts, show=show)
        counts.rows = write_rows(_tokenized(one, triplets, encoding), draft / _ROWS, _SCHEMA)
        if counts.rows == 0:
            first = f"; {counts.places[0]}" if counts.places else ""
            raise L2VError(f"{one.override}.files: no row of {one.name} can be used{first}")
        write_json(draft / _COUNTS, {"name": one.name, **dataclasses.asdict(counts)})
    if show:
        say(counts.line(one.name), style="yellow" if counts.broken else None)
    return folder


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


class _BrokenRow(Exception):
    pass


def _triplets(one: TripletSet, counts: Counts, *, show: bool) -> Iterator[Triplet]:
    """The rows of a set that are used."""
    number = -1
    for where, values, problem in one.records(show=show):
        try:
            if problem is not None:
                raise _BrokenRow(problem)
            if one.task and _field(values, one.task, f"{one.override}.task") != one.name:
                continue
            number += 1
            if one.share is not None and one.share < 1 and not _is_shared(one, number):
                continue
            triplet, dropped = _triplet(one, number, values)
        except _BrokenRow as error:
            number += problem is not None
            if one.on_error == "fatal":
                hint = f"{one.override}.on_error=skip leaves such rows out"
                raise L2VError(f"{where}: {error}; mend it, or {hint}") from None
            counts.broken += 1
            if len(counts.places) < _PLACES_KEPT:
                counts.places.append(f"{where}: {error}")
        else:
            counts.negatives += len(triplet.documents) - 1
            counts.negatives_dropped += dropped
            yield triplet


def _is_shared(one: TripletSet, number: int) -> bool:
    return seed_of(one.seed, "share", number) < (one.share or 1) * 2**63


def _triplet(one: TripletSet, number: int, values: Any) -> tuple[Triplet, int]:
    """A row's texts, and how many negatives were left out.

    A negative that equals the positive would push away what is to be pulled close; one that equals the query would
    have the highest score of all, whatever the model; one that is there twice would count twice.
    """
    assert one.query is not None and one.positive is not None
    query = _text(values, one.query, f"{one.override}.query")
    positive = _text(values, one.positive, f"{one.override}.positive")
    negatives = [text for column in one.negatives for text in _negatives(one, values, column)]
    kept = list(dict.fromkeys(text for text in negatives if text not in (query, positive)))
    score = math.nan
    if one.score is not None:
        try:
            score = float(_field(values, one.score, f"{one.override}.score"))
        except (TypeError, ValueError):
            raise _BrokenRow(f"expected a number under {one.score!r}, found {values[one.score]!r}") from None
    return Triplet(number, query, [positive, *kept], score), len(negatives) - len(kept)


def _negatives(one: TripletSet, values: Any, column: str) -> list[str]:
    """The texts of a negative column. Null is none; so is an empty text, where there are several columns."""
    override = f"{one.override}.negative"
    found = _field(values, column, f"{override} (null: pairs)")
    if found is None or (found == "" and len(one.negatives) > 1):
        return []
    texts = found if isinstance(found, list) else [found]
    return [_text({column: text}, column, override) for text in texts]


def _field(values: Any, column: str, override: str) -> Any:
    if not isinstance(values, dict):
        raise _BrokenRow(f"expected an object with {column!r}, found {type(values).__name__}")
    if column not in values:
        names = ", ".join(map(str, values)) or "none"
        raise _BrokenRow(f"no column {column!r} (it has {names}); name the column with {override}")
    return values[column]


def _text(values: Any, column: str, override: str) -> str:
    found = _field(values, column, override)
    if not isinstance(found, str):
        raise _BrokenRow(f"expected a text under {column!r}, found {type(found).__name__}")
    text = clean(found).strip()
    if not text:
        raise _BrokenRow(f"the text under {column!r} is empty")
    return text


def _tokenized(one: TripletSet, triplets: Iterator[Triplet], encoding: _Encoding) -> Iterator[tuple[Any, ...]]:
    """Rows of ``_SCHEMA``."""
    while chunk := list(islice(triplets, _CHUNK)):
        wanted = [one.instructions(row.number) for row in chunk]
        queries = encoding.tokenize([row.query for row in chunk], [query for query, _ in wanted])
        texts = [text for row in chunk for text in row.documents]
        before = [document for row, (_, document) in zip(chunk, wanted, strict=True) for _ in row.documents]
        documents = iter(encoding.tokenize(texts, before))
        for row, query in zip(chunk, queries, strict=True):
            ids, begins = zip(*islice(documents, len(row.documents)), strict=True)
            hashes = [_text_hash(text) for text in row.documents]
            yield query.input_ids, query.text_begin, ids, begins, row.score, _text_hash(row.query), hashes


def _text_hash(text: str) -> int:
    """A signed 64-bit number, equal for equal texts; among a million others, two are by a chance of 3 in 10^8."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


# which rows train, and which validate


def _row_texts(data: datasets.Dataset, bounds: np.ndarray) -> RowTexts:
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


def _choose(mix: TripletMix, data: datasets.Dataset, bounds: np.ndarray) -> np.ndarray:
    """Numbers of the rows of the mix's part.

    Rows are ranked by a number that the seed and the query's text make, the same in every set; the first of each set
    are held out, so that all rows of a query are on one side. No row that trains has the text of a held-out query,
    as a query or as a document.
    """
    if mix.held_out == 0:
        return np.arange(len(data))
    texts = _row_texts(data, bounds)
    ranks = _mix_bits(texts.queries, seed_of(mix.seed, "held_out"))
    held = np.zeros(len(data), dtype=bool)
    for first, last in zip([0, *bounds[:-1]], bounds, strict=True):
        count = min(mix.held_out, (last - first) // 10)
        if count:
            held[first:last] = ranks[first:last] <= np.partition(ranks[first:last], count - 1)[count - 1]
    if not held.any():
        raise L2VError(
            "data.held_out: expected a set of 10 rows or more, of which one is held out, found none; set "
            "data.held_out=0 and name data.validation.files="
        )
    if mix.part == "held_out":
        return np.flatnonzero(held)
    known = np.unique(texts.queries[held])
    leaks = np.add.reduceat(_among(texts.documents, known), texts.offsets[:-1]) > 0
    chosen = np.flatnonzero(~(_among(texts.queries, known) | leaks))
    if not len(chosen):
        raise L2VError("data.held_out: every row has the text of a held-out query; lower it")
    return chosen


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each value is one of ``known``, which is sorted; quick where ``known`` is small."""
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values


def _mix_bits(values: np.ndarray, seed: int) -> np.ndarray:
    """Numbers without an order that tells of the values or of another seed's (the finalizer of SplitMix64)."""
    mixed = values.astype(np.uint64) ^ np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
