"""Wikipedia: the English excerpt inside the package ``gensim``, and that of any language on the hub."""

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge

from l2v.data.order import evenly
from l2v.data.texts import stream_hub
from l2v.errors import L2VError
from l2v.extras import require
from l2v.runs.hashes import file_hash
from l2v.runs.locations import package_file

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


_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 40, 480
"""Bytes in UTF-8: some 7 to 80 words of English or German, 13 to 160 characters of Chinese."""


@dataclass(frozen=True)
class Wikipedia:
    """Wikipedia in one language, from the hub; the articles are read on the way, as many as are asked for.

    They are the first of the dump. Of these, ``held_out`` evenly spaced ones validate: no article is in both parts.
    """

    language: str
    """As the Wikipedia's address has it: de, zh, simple, zh-min-nan."""
    part: Literal["train", "held_out"]
    unit: Literal["article", "sentence"] = "article"
    """A whole article a text, or a sentence a text (the package sentencex finds them)."""
    articles: Annotated[int, Ge(2)] = 10_000
    """Of both parts together."""
    held_out: Annotated[int, Ge(1)] = 100
    hub: str = "wikimedia/wikipedia"
    """owner/name of the data set, with a configuration <dump>.<language> and the column text."""
    dump: str = "20231101"
    revision: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", self.language):
            raise L2VError(f"data.languages: {self.language!r} is no language of Wikipedia's, as de, zh or simple")
        if self.held_out >= self.articles:
            raise L2VError(
                f"data.held_out={self.held_out} leaves none of data.train.articles={self.articles} to train on"
            )
        if self.unit == "sentence":
            require("data.languages", "sentencex")

    def texts(self) -> Iterator[str]:
        for article in self._articles():
            if self.unit == "article":
                yield article
            else:
                yield from self._sentences(article)

    def _articles(self) -> Iterator[str]:
        held_out = set(evenly(self.articles, self.held_out))
        where = f"data.languages: {self.language}"
        rows = stream_hub(self.hub, f"{self.dump}.{self.language}", self.revision, "text", override=where)
        for number, text in enumerate(islice(rows, self.articles)):
            if (number in held_out) == (self.part == "held_out") and text:
                yield text

    def _sentences(self, article: str) -> Iterator[str]:
        """A heading or an item of a list is a line of its own, and mostly shorter than a sentence."""
        from sentencex import segment

        for line in article.splitlines():
            for sentence in map(str.strip, segment(self.language, line)):
                if _SHORTEST_SENTENCE <= len(sentence.encode()) <= _LONGEST_SENTENCE:
                    yield sentence

    def fingerprint(self) -> str:
        source = f"{self.hub}:{self.dump}.{self.language}:{self.revision}"
        return f"wikipedia:1:{source}:{self.articles}:{self.held_out}:{self.part}:{self.unit}"


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
