"""The English Wikipedia excerpt inside the package ``gensim``: real text without a network."""

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
