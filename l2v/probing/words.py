"""Sentences of labelled words: columns of a file, CoNLL-U, or a data set of the hub.

Like the sources of :mod:`l2v.data.texts`, each is a small frozen dataclass; ``sentences()`` yields and
``fingerprint()`` says which bytes they come from.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from l2v.data.texts import content_of_local
from l2v.errors import L2VError, first_line
from l2v.runs.hashes import file_hash

Part = Literal["train", "validation", "test"]
WORD = "word"
"""The name of the column that holds the words."""
_DOCUMENT = "-DOCSTART-"
"""The word of a line that begins a document in CoNLL-2003; it is no sentence."""


class Sentence(NamedTuple):
    """Words, and their labels by column."""

    words: list[str]
    labels: dict[str, list[str]]
    source: str
    """A file, or a data set's name."""
    lines: list[int]
    """The line of each word, or the row of the sentence."""

    def place(self, word: int) -> str:
        return f"{self.source}:{self.lines[word]}"


@runtime_checkable
class WordSource(Protocol):
    """Sentences in a fixed order."""

    def sentences(self) -> Iterator[Sentence]: ...

    def label_columns(self) -> list[str]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class ColumnWords:
    """Files with a word a line, its labels in columns beside it, and an empty line between sentences.

    ``format`` conll: columns are separated by blanks or tabs, and lines of documents (-DOCSTART-) are left out.
    ``format`` conllu (Universal Dependencies): columns are separated by tabs; comments, ranges of words (1-2) and
    empty nodes (8.1) are left out.
    """

    files: str | list[str]
    """A path or a list of them."""
    columns: dict[str, int] = field(default_factory=dict)
    """Name -> number of the column, from 0, or from -1 backwards; one is named ``word``."""
    format: Literal["conll", "conllu"] = "conll"
    override: str = "data.train"
    """What an error names."""

    def __post_init__(self) -> None:
        if WORD not in self.columns or len(self.columns) < 2:
            raise L2VError(
                f"{self.override}.columns={self.columns}: expected the numbers of word and of a label, as in "
                "{word: 0, ner: 3}"
            )
        for path in self._paths():
            if not path.is_file():
                raise L2VError(f"{self.override}.files={path}: no such file")

    def _paths(self) -> list[Path]:
        return [Path(file).expanduser() for file in ([self.files] if isinstance(self.files, str) else self.files)]

    def label_columns(self) -> list[str]:
        return [name for name in self.columns if name != WORD]

    def sentences(self) -> Iterator[Sentence]:
        for path in self._paths():
            try:
                yield from self._read(path)
            except UnicodeDecodeError as error:
                raise L2VError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it") from None

    def _read(self, path: Path) -> Iterator[Sentence]:
        width = first = 0
        rows: list[list[str]] = []
        lines: list[int] = []
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                fields = self._fields(line)
                if fields is None:
                    continue
                if not fields:
                    if rows:
                        yield self._sentence(path, rows, lines)
                    rows, lines = [], []
                    continue
                if not width:
                    width, first = len(fields), number
                    self._check_columns(f"{path}:{number}", width)
                if len(fields) != width:
                    raise L2VError(
                        f"{path}:{number}: expected {width} columns, as in line {first}, found {len(fields)}: "
                        f"{line.strip()[:60]!r}"
                    )
                rows.append(fields)
                lines.append(number)
        if rows:
            yield self._sentence(path, rows, lines)

    def _fields(self, line: str) -> list[str] | None:
        """The columns of a line; empty where a sentence ends, None for a line to pass over."""
        if self.format == "conll":
            fields = re.split(r"[ \t]+", line.strip(" \t\r\n")) if line.strip() else []
            return None if fields and fields[0] == _DOCUMENT else fields
        if line.startswith("#"):
            return None
        fields = line.rstrip("\r\n").split("\t") if line.strip() else []
        return None if fields and not fields[0].isdecimal() and fields[0][:1].isdecimal() else fields

    def _check_columns(self, place: str, width: int) -> None:
        for name, column in self.columns.items():
            if not -width <= column < width:
                raise L2VError(
                    f"{place}: no column {column} for {name}; the line has {width}; name others with "
                    f"{self.override}.columns"
                )

    def _sentence(self, path: Path, rows: list[list[str]], lines: list[int]) -> Sentence:
        labels = {name: [row[self.columns[name]] for row in rows] for name in self.label_columns()}
        return Sentence([row[self.columns[WORD]] for row in rows], labels, str(path), lines)

    def fingerprint(self) -> str:
        return f"words:{self.format}:{sorted(self.columns.items())}:" + ":".join(map(file_hash, self._paths()))


@dataclass(frozen=True)
class HubWords:
    """A data set of the hub with a list of words and lists of labels a row, as Parquet: no script is run."""

    path: str
    """owner/name, or ``parquet`` with ``data_files`` for local files."""
    split: str
    columns: dict[str, str]
    """Our name -> theirs; one of ours is ``word``."""
    name: str | None = None
    """The configuration."""
    revision: str | None = None
    data_files: str | None = None

    def label_columns(self) -> list[str]:
        return [name for name in self.columns if name != WORD]

    def sentences(self) -> Iterator[Sentence]:
        import datasets

        try:
            data: Any = datasets.load_dataset(
                self.path, self.name, split=self.split, revision=self.revision, data_files=self.data_files
            )
        except Exception as error:  # datasets raises a dozen unrelated types here
            raise L2VError(
                f"data={self.path}: cannot be loaded from the hub ({first_line(error)}); name a folder with "
                "data.folder=<the files of CoNLL-2003>, or use data=conll with your own files"
            ) from error
        if missing := [theirs for theirs in self.columns.values() if theirs not in data.column_names]:
            raise L2VError(f"data={self.path}: no column {missing[0]!r}; it has {', '.join(data.column_names)}")
        names = {ours: self._names(data.features[theirs], theirs) for ours, theirs in self.columns.items()}
        for number, row in enumerate(data):
            values = {
                ours: row[theirs] if names[ours] is None else [names[ours][label] for label in row[theirs]]
                for ours, theirs in self.columns.items()
            }
            words = values.pop(WORD)
            if words and words[0] != _DOCUMENT:
                yield Sentence(words, values, f"data={self.path}", [number] * len(words))

    def _names(self, feature: Any, column: str) -> Any:
        """The labels' names where they are stored as numbers."""
        inner = getattr(feature, "feature", feature)
        if getattr(inner, "dtype", "").startswith("int") and not hasattr(inner, "names"):
            raise L2VError(
                f"data={self.path}: the labels of {column} are numbers without names; choose a copy with them"
            )
        return getattr(inner, "names", None)

    def fingerprint(self) -> str:
        pinned = content_of_local(self.path, self.data_files)
        return (
            f"words:hub:{self.path}:{self.name}:{self.split}:{self.columns}:{self.revision}:{self.data_files}{pinned}"
        )


_CONLL2003_FILES = {
    "train": ("eng.train", "train.txt"),
    "validation": ("eng.testa", "valid.txt"),
    "test": ("eng.testb", "test.txt"),
}


def conll2003(*, part: Part, folder: str | None = None, hub: str, revision: str | None = None) -> WordSource:
    """CoNLL-2003 (Tjong Kim Sang and De Meulder 2003): its files in ``folder``, else a copy of the hub.

    Args:
        part: train, validation (testa) or test (testb).
        folder: with eng.train, eng.testa and eng.testb, or train.txt, valid.txt and test.txt.
        hub: owner/name of a Parquet copy, used where there is no folder.
        revision: branch or commit of it.

    Raises:
        L2VError: the folder has no such file.
    """
    if folder is None:
        columns = {WORD: "tokens", "pos": "pos_tags", "chunk": "chunk_tags", "ner": "ner_tags"}
        return HubWords(hub, part, columns, revision=revision)
    names = _CONLL2003_FILES[part]
    found = [file for name in names if (file := Path(folder).expanduser() / name).is_file()]
    if not found:
        raise L2VError(f"data.folder={folder}: no {names[0]} (or {names[1]})")
    return ColumnWords(str(found[0]), {WORD: 0, "pos": 1, "chunk": 2, "ner": 3}, override=f"data.{part}")


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Spans of IOB1 or IOB2 in IOB2, where each span begins with B-.

    IOB1 writes B- only for a span that follows one of its own type; so a tag I-X begins a span where the tag before it
    is O or of another type. IOB2 stays as it is.

    Raises:
        ValueError: (the tag's number, what is wrong with it).
    """
    converted: list[str] = []
    before = ""
    for number, tag in enumerate(tags):
        prefix, dash, kind = tag.partition("-")
        if tag != "O" and not (prefix in ("B", "I") and dash and kind):
            raise ValueError(number, f"expected O, B-... or I-... (IOB1 or IOB2), found {tag!r}")
        kind = "" if tag == "O" else kind
        converted.append(f"B-{kind}" if kind and (prefix == "B" or kind != before) else tag)
        before = kind
    return converted


def labels_of(sentence: Sentence, column: str, *, spans: bool) -> list[str]:
    """A sentence's labels in a column, as they are trained and scored: spans in IOB2.

    Raises:
        L2VError: a tag that is neither IOB1 nor IOB2.
    """
    labels = sentence.labels[column]
    if not spans:
        return labels
    try:
        return to_iob2(labels)
    except ValueError as error:
        number, reason = error.args
        raise L2VError(f"{sentence.place(number)}: {reason}; for labels without spans set task.spans=false") from None


def label_list(parts: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """The labels of all parts: those of the training part first, each group sorted, so that a number means the same
    for whatever is validated on. A label that training never sees is never predicted, and counts as an error."""
    names: dict[str, None] = {}
    for sentences in parts.values():
        names |= dict.fromkeys(sorted({label for labels in sentences for label in labels} - names.keys()))
    return list(names)
