"""Where raw text comes from: the hub, a user's files, an installed package.

Each source is a small frozen dataclass with two methods: ``texts()`` yields strings and ``fingerprint()`` says which
bytes they come from, so that what is made of them can be cached.
"""

import bz2
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from l2v.errors import L2VError, first_line
from l2v.sources import file_hash, package_file


@runtime_checkable
class TextSource(Protocol):
    """Texts in a fixed order."""

    def texts(self) -> Iterator[str]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class HubTexts:
    """A text column of a data set on the Hugging Face hub."""

    path: str
    """owner/name."""
    split: str
    name: str | None = None
    """The configuration, e.g. wikitext-103-raw-v1."""
    column: str = "text"
    revision: str | None = None
    data_files: str | None = None

    def texts(self) -> Iterator[str]:
        import datasets

        try:
            data: Any = datasets.load_dataset(
                self.path, self.name, split=self.split, revision=self.revision, data_files=self.data_files
            )
        except Exception as error:  # datasets raises a dozen unrelated types here
            raise L2VError(
                f"data={self.path}: cannot be loaded from the hub ({first_line(error)}); choose another data=, or use "
                "data=files with data.train.files=<your text file>"
            ) from error
        if self.column not in data.column_names:
            raise L2VError(f"data={self.path}: no column {self.column!r}; it has {', '.join(data.column_names)}")
        for row in data:
            if row[self.column]:
                yield _text(row, self.column, f"data={self.path}", "data.train.column")

    def fingerprint(self) -> str:
        return f"hub:{self.path}:{self.name}:{self.split}:{self.column}:{self.revision}:{self.data_files}"


@dataclass(frozen=True)
class FileTexts:
    """Local files: .txt (a text a line), .jsonl, .csv, .tsv or .parquet (a text a row of ``column``)."""

    files: str | list[str]
    """A path, a glob pattern, or a list of them."""
    column: str = "text"
    override: str = "data.train.files"
    """What an error names."""

    def __post_init__(self) -> None:
        self.paths()

    def paths(self) -> list[Path]:
        """The files: they exist, are not empty, and end in something that can be read."""
        patterns = [self.files] if isinstance(self.files, str) else list(self.files)
        found: list[Path] = []
        for pattern in patterns:
            path = Path(pattern).expanduser()
            matches = [path] if path.is_file() else sorted(m for m in _glob(path) if m.is_file())
            if not matches:
                raise L2VError(f"{self.override}={pattern}: no such file")
            found += matches
        for path in found:
            if path.suffix.lower() not in _READERS:
                expected, ending = ", ".join(_READERS), path.suffix or "no ending"
                raise L2VError(f"{self.override}={path}: expected {expected}, found {ending}")
            if path.stat().st_size == 0:
                raise L2VError(f"{self.override}={path}: the file is empty; expected at least one text")
        return found

    def texts(self) -> Iterator[str]:
        seen = False
        for path in self.paths():
            try:
                for text in _READERS[path.suffix.lower()](path, self.column, self.column_override):
                    if text:
                        seen = True
                        yield text
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise L2VError(f"{path}: not UTF-8 (byte {byte:#04x}); convert it to UTF-8") from None
        if not seen:
            raise L2VError(f"{self.override}={self.files}: the file is empty; expected at least one text")

    @property
    def column_override(self) -> str:
        """What names the column, e.g. data.train.column."""
        return self.override.rpartition(".")[0] + ".column" if "." in self.override else "column"

    def fingerprint(self) -> str:
        return "files:" + ":".join(file_hash(path) + path.suffix.lower() for path in self.paths()) + ":" + self.column


def _glob(pattern: Path) -> Iterator[Path]:
    root, parts = (pattern.anchor, pattern.parts[1:]) if pattern.is_absolute() else (".", pattern.parts)
    return Path(root).glob(str(Path(*parts))) if parts else iter(())


# Each reader yields a file's texts. Files begin with a byte order mark where Excel or Notepad wrote them: utf-8-sig.


def _read_lines(path: Path, column: str, override: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                yield line.rstrip("\n")


def _read_jsonl(path: Path, column: str, override: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise L2VError(f"{path}:{number}: not JSON ({error.msg})") from None
            yield _text(row, column, f"{path}:{number}", override)


def _read_csv(path: Path, column: str, override: str) -> Iterator[str]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            for row in reader:
                yield _text(row, column, f"{path}:{reader.line_num}", override)
        except csv.Error as error:
            raise L2VError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _read_parquet(path: Path, column: str, override: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise L2VError(f"{path}: not Parquet ({error})") from None
    if column not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise L2VError(f"{path}: no column {column!r}; it has {names}; name the column with {override}")
    for batch in file.iter_batches(columns=[column]):
        yield from (_text({column: text}, column, str(path), override) for text in batch.column(0).to_pylist() if text)


_READERS = {
    ".txt": _read_lines,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
_LONGEST_FIELD = 2**31 - 1
"""Characters in a field of a CSV file; Python's own limit of 131,072 is shorter than a book."""


def _text(row: Any, column: str, where: str, override: str) -> str:
    if not isinstance(row, dict):
        raise L2VError(f"{where}: expected an object with a text under {column!r}, found {type(row).__name__}")
    if column not in row:
        names = ", ".join(map(str, row))
        raise L2VError(f"{where}: no column {column!r}; it has {names}; name the column with {override}")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise L2VError(f"{where}: expected a text under {column!r}, found {kind}; name the column with {override}")
    return row[column]


_WIKIPEDIA = "package:gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SHORTEST_ARTICLE = 3000
_HEADING_OR_LIST = re.compile(r"^\s*(=|\*|#|:|;|\||!|\{|thumb|\[\[)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[A-Z\"'(])")
_BOLD = re.compile(r"'{3}(.+?)'{3}")
_ABBREVIATION = re.compile(
    r"\b([A-Z]|Dr|Mr|Mrs|Ms|St|Jr|Sr|Prof|Rev|Hon|Sen|Rep|Gov|Gen|Brig|Maj|Col|Capt|Lt|Sgt|Adm|Cmdr|Inc|Ltd|Co|Mt|Ft|"
    r"No|Vol|Ch|Fig|pp|vs|v|al|lit|approx|c|ca|cf|e\.g|i\.e)\.\)?$"
)


class Article(NamedTuple):
    """An article of Wikipedia, without markup."""

    title: str
    paragraphs: list[str]
    opening: int
    """Number of the paragraph that opens the article; those before it are captions."""


@dataclass(frozen=True)
class WikipediaExcerpt:
    """The English Wikipedia excerpt inside the package ``gensim``: real text without a network.

    Articles with an odd number (in the dump's order, among those of at least 3,000 characters) are for training,
    those with an even number for validation and evaluation: no article is in both.
    """

    part: Literal["train", "held_out"]
    unit: Literal["article", "sentence"] = "article"
    """A whole article a text, or a sentence (of 6 to 60 words) a text."""

    def texts(self) -> Iterator[str]:
        for article in self.articles():
            if self.unit == "article":
                yield "\n".join(article.paragraphs)
            else:
                for paragraph in article.paragraphs:
                    yield from (s for s in split_sentences(paragraph) if 6 <= len(s.split()) <= 60)

    def articles(self) -> Iterator[Article]:
        """Articles in the dump's order."""
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki

        number = 0
        with bz2.open(package_file(_WIKIPEDIA)) as file:
            for title, markup, _ in extract_pages(file, filter_namespaces=("0",)):
                lines = [line for line in filter_wiki(markup).splitlines() if _prose(line)]
                paragraphs = list(map(_prose, lines))
                if sum(map(len, paragraphs)) < _SHORTEST_ARTICLE:
                    continue
                number += 1
                if (self.part == "train") == (number % 2 == 1):
                    yield Article(title, paragraphs, _opening(title, lines))

    def fingerprint(self) -> str:
        return f"wikipedia-excerpt:3:{file_hash(package_file(_WIKIPEDIA))}:{self.part}:{self.unit}"


def _prose(line: str) -> str:
    """A line of wiki text without its markup; empty for what is no paragraph."""
    line = re.sub(r"'{2,}", "", line)
    line = re.sub(r"\s*\(\s*[,;]?\s*\)|<[^>]*>", "", line)
    line = re.sub(r"\s+", " ", line).strip()
    return line if len(line) >= 80 and line[-1] in '.!?")' and not _HEADING_OR_LIST.match(line) else ""


def _opening(title: str, lines: list[str]) -> int:
    """The first line that sets the title in bold, as Wikipedia's manual of style asks of an opening; else the first."""
    bold = (n for n, line in enumerate(lines) if any(names(title, term) for term in _BOLD.findall(line)))
    return next(bold, 0)


def names(title: str, text: str) -> bool:
    """Whether a text has the longest word of a title in it, in any case and inflection (Amphibian: amphibians)."""
    return max(title.split(), key=len).casefold() in text.casefold()


def split_sentences(paragraph: str) -> list[str]:
    """Split English prose at ends of sentences, but not after initials and common abbreviations."""
    sentences: list[str] = []
    for piece in _SENTENCE_END.split(paragraph):
        if sentences and _ABBREVIATION.search(sentences[-1]):
            sentences[-1] += " " + piece
        else:
            sentences.append(piece)
    return sentences
