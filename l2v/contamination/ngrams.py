"""Evaluation texts found in training texts by the n-grams of words that they share.

The n-grams of the evaluation side are kept as 64-bit hashes; the training texts are read once and thrown away, so
memory does not grow with them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from l2v.contamination.words import words as words_of
from l2v.errors import L2VError

_CHUNK = 2**17
"""Words that are hashed at once."""
_BORDER = ""
"""Between texts; no word, so that no n-gram crosses it."""
_FILTER_BITS = 27
"""At most: 2^27 bytes."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class Grams:
    """What counts as found; the defaults are the bounds of GPT-3's analysis (arXiv 2005.14165, appendix C)."""

    n: Annotated[int, Ge(1)] = 13
    """Words in a row that the training data must hold."""
    shortest: Annotated[int, Ge(1)] = 8
    """A text of fewer than ``n`` words is looked for as a whole; one of fewer than this is not looked for."""

    def __post_init__(self) -> None:
        if self.shortest > self.n:
            raise L2VError(f"shortest={self.shortest}: expected n={self.n} or fewer words")


def contamination(
    training: Iterable[str], tasks: Mapping[str, Iterable[str]], grams: Grams | None = None
) -> dict[str, Any]:
    """Look for the texts of each task in the training texts.

    Two different n-grams share a 64-bit hash by a chance of about 2^-64. With 10^8 words of training data and 10^6
    n-grams to look for, one of these is found by mistake with a chance of 5 in 10^6.

    Args:
        training: read once.
        tasks: name -> its texts, which are kept in memory.
        grams: what counts as found.

    Returns:
        ``training`` (``texts`` and ``words`` read) and ``tasks``: for each name

        - ``texts``, and how many of them were ``too_short`` to be looked for;
        - ``texts_found`` and ``share``: texts with an n-gram in the training data, and their share of those that were
          looked for (None if there are none);
        - ``grams``, ``grams_found`` and ``grams_share``: the same of their n-grams, each as often as it occurs;
        - ``examples``: the first texts found, the words found, and the ``training_text`` (its number, from 1) that has
          them.
    """
    wanted = _Wanted({name: list(texts) for name, texts in tasks.items()}, grams or Grams())
    texts = count = 0
    for words, lengths in _chunks(training):
        wanted.mark(words, lengths, texts)
        texts += len(lengths)
        count += sum(lengths)
    return {"training": {"texts": texts, "words": count}, "tasks": {name: wanted.told(name) for name in tasks}}


def _chunks(texts: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Words of some texts at a time, with a border after each text, and how many words each text has."""
    found: list[str] = []
    lengths: list[int] = []
    for text in texts:
        own = words_of(text)
        found += own
        found.append(_BORDER)
        lengths.append(len(own))
        if len(found) >= _CHUNK:
            yield found, lengths
            found, lengths = [], []
    if lengths:
        yield found, lengths


# n-grams


def _hashes(values: NDArray[np.uint64], longest: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Hashes of all windows of 1 word, of 2, ... of ``longest``, each from the hash of the window that is a word less.

    A window's hash is mixed by a bijection before the next word's random number is added, so that order counts.
    """
    hashes = values
    yield 1, hashes
    for length in range(2, min(longest, len(values)) + 1):
        shorter = hashes[:-1]
        hashes = shorter >> _SHIFT
        hashes ^= shorter
        hashes *= _FACTOR
        hashes += values[length - 1 :]
        yield length, hashes


class _Wanted:
    """The n-grams of the evaluation side, and which training text was the first to have each.

    Words that no evaluation text has are all the same unknown word, so the vocabulary does not grow with training data.
    """

    def __init__(self, tasks: dict[str, list[str]], grams: Grams) -> None:
        self.tasks, self.grams = tasks, grams
        self.vocabulary: dict[str, int] = {}
        chunks = {name: [self._numbers(*chunk) for chunk in _chunks(texts)] for name, texts in tasks.items()}
        self.values = np.random.default_rng(0).integers(0, 2**64, len(self.vocabulary) + 1, np.uint64)
        """A random number for each word; the first is that of unknown words and borders."""
        # of each n-gram: its hash, and the text, the place in the text and the number of words
        empty = [np.empty((4, 0), np.uint64)]
        found = {name: np.hstack([*empty, *self._grams(parts)]) for name, parts in chunks.items()}
        self.places = {name: rows[1:].astype(np.int64) for name, rows in found.items()}
        every = np.hstack([empty[0], *found.values()])
        self.keys, index = np.unique(every[0], return_inverse=True)
        ends = np.cumsum([rows.shape[1] for rows in found.values()])
        self.index = dict(zip(tasks, np.split(index, ends[:-1]), strict=True)) if tasks else {}
        self.lengths = set(every[3].tolist())
        self.first_text = np.full(len(self.keys), -1, np.int64)
        bits = min(max(len(self.keys) * 16, 2**16).bit_length(), _FILTER_BITS)
        self.shift = np.uint64(64 - bits)
        self.filter = np.zeros(2**bits, np.bool_)
        """Whether some key begins with these bits: it answers for most windows that are not wanted."""
        self.filter[self.keys >> self.shift] = True

    def _numbers(self, found: list[str], lengths: list[int]) -> tuple[NDArray[np.int64], list[int]]:
        for word in found:
            if word:
                self.vocabulary.setdefault(word, len(self.vocabulary) + 1)
        return self._ids(found), lengths

    def _ids(self, found: list[str]) -> NDArray[np.int64]:
        return np.fromiter(map(self.vocabulary.get, found, repeat(0)), np.int64, len(found))

    def _grams(self, chunks: list[tuple[NDArray[np.int64], list[int]]]) -> Iterator[NDArray[np.uint64]]:
        """Hash, text, place in the text and length of n-grams: (4, n-grams)."""
        before = 0
        for ids, lengths in chunks:
            sizes = np.array(lengths)
            starts = np.cumsum(sizes + 1) - sizes - 1
            for length, hashes in _hashes(self.values[ids], self.grams.n):
                whole = length < self.grams.n
                chosen = np.flatnonzero(sizes == length if whole else sizes >= length)
                if length < self.grams.shortest or not len(chosen):
                    continue
                counts = sizes[chosen] - length + 1
                owner = np.repeat(chosen, counts)
                offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
                rows = [hashes[starts[owner] + offset], owner + before, offset, np.full(len(owner), length)]
                yield np.stack([row.astype(np.uint64) for row in rows])
            before += len(lengths)

    def mark(self, found: list[str], lengths: list[int], before: int) -> None:
        """Look at some training texts, before which there were ``before``."""
        ends = np.cumsum(np.array(lengths) + 1)
        for length, hashes in _hashes(self.values[self._ids(found)], max(self.lengths, default=0)):
            if length not in self.lengths:
                continue
            likely = np.flatnonzero(self.filter[hashes >> self.shift])
            at = np.searchsorted(self.keys, hashes[likely]).clip(max=len(self.keys) - 1)
            hit = self.keys[at] == hashes[likely]
            at, texts = at[hit], before + np.searchsorted(ends, likely[hit], side="right")
            new = self.first_text[at] < 0
            # of equal indices the last is assigned; the first text is wanted
            self.first_text[at[new][::-1]] = texts[new][::-1]

    def told(self, name: str) -> dict[str, Any]:
        """What was found of a task."""
        texts, (owner, offset, length) = self.tasks[name], self.places[name]
        first = self.first_text[self.index[name]]
        hit = first >= 0
        looked_for, found = len(np.unique(owner)), np.unique(owner[hit])
        examples = []
        for number in found[:_EXAMPLES].tolist():
            at = np.flatnonzero(hit & (owner == number))
            at = at[offset[at].argmin()]
            same = words_of(texts[number])[offset[at] : offset[at] + length[at]]
            text = texts[number].strip()
            cut = text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "..."
            examples.append({"text": cut, "words": " ".join(same), "training_text": int(first[at]) + 1})
        return {
            "texts": len(texts),
            "too_short": len(texts) - looked_for,
            "texts_found": len(found),
            "share": len(found) / looked_for if looked_for else None,
            "grams": len(owner),
            "grams_found": int(hit.sum()),
            "grams_share": int(hit.sum()) / len(owner) if len(owner) else None,
            "examples": examples,
        }
