"""Where raw text comes from: the hub, a user's files, an installed package.

Each source is a small frozen dataclass with two methods: ``texts()`` yields strings and ``fingerprint()`` says which
bytes they come from, so that what is made of them can be cached.
"""

import bz2
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from l2v.data.files import RECORD_FILES, check_columns, content, find, not_utf8, records, text_of
from l2v.errors import L2VError, first_line
from l2v.sources import file_hash, package_file


class DataSource(Protocol):
    """Where training data come from: texts (:class:`TextSource`) or triplets (``l2v.data.triplets``)."""

    def fingerprint(self) -> str:
        """Which bytes the data come from, and how they are read: part of the key of what is made of them."""
        ...


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
        for row in load_hub(
            self.path, self.name, self.split, self.revision, self.data_files, columns=[self.column], override="data"
        ):
            if row[self.column]:
                yield text_of(row, self.column, f"data={self.path}", "data.train.column")

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
        return find(self.files, self.override, [".txt", *RECORD_FILES])

    def texts(self) -> Iterator[str]:
        seen = False
        for path in self.paths():
            for text in self._read(path):
                if text:
                    seen = True
                    yield text
        if not seen:
            raise L2VError(f"{self.override}={self.files}: the file is empty; expected at least one text")

    def _read(self, path: Path) -> Iterator[str]:
        if path.suffix.lower() == ".txt":
            yield from _lines(path)
            return
        for where, row, problem in records(path, [self.column], self.column_override):
            if problem is not None:
                raise L2VError(f"{where}: {problem}")
            if path.suffix.lower() == ".parquet" and row[self.column] is None:
                continue
            yield text_of(row, self.column, where, self.column_override)

    @property
    def column_override(self) -> str:
        """What names the column, e.g. data.train.column."""
        return self.override.rpartition(".")[0] + ".column" if "." in self.override else "column"

    def fingerprint(self) -> str:
        return f"files:{content(self.paths())}:{self.column}"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:  # Excel and Notepad begin a file with a byte order mark
        try:
            for line in file:
                if line.strip():
                    yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise L2VError(f"{path}: {not_utf8(error)}") from None


def load_hub(
    path: str,
    name: str | None,
    split: str,
    revision: str | None,
    data_files: str | None,
    *,
    columns: Iterable[str],
    override: str,
) -> Any:
    """A data set of the Hugging Face hub, with the columns that are asked for.

    Raises:
        L2VError: it cannot be loaded, or has not the columns.
    """
    import datasets

    try:
        data: Any = datasets.load_dataset(path, name, split=split, revision=revision, data_files=data_files)
    except Exception as error:  # datasets raises a dozen unrelated types here
        raise L2VError(
            f"{override}={path}: cannot be loaded from the hub ({first_line(error)}); choose another data=, or use "
            "local files (data=files, data=triplets)"
        ) from error
    check_columns(data.column_names, columns, f"{override}={path}", "data.train.column")
    return data


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
