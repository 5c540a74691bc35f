"""Several sets of texts, such as languages, as one: how often each is read, and the order of their rows."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import datasets
import numpy as np
from annotated_types import Ge, Le

from l2v.data.datamodule import Rows
from l2v.data.order import GlobalBatches, evenly, seed_of, shuffled
from l2v.data.texts import TextSource
from l2v.errors import L2VError
from l2v.progress import say

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class TextMix:
    """Named sets of texts; a row of a set is read as often as its share says."""

    sets: dict[str, TextSource]
    shares: dict[str, float] | None = None
    """How much of what is read comes from each set, relative to the others; None: as ``alpha`` says."""
    alpha: Annotated[float, Ge(0), Le(1)] = 1.0
    """A set's share goes as its number of rows to this power: 1 proportional, 0 the same for all sets (XLM-R, arXiv
    1911.02116, section 3.1: 0.3)."""
    override: str = "data.train"
    """What an error names."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise L2VError(f"{self.override}.sets: expected at least one set of texts")
        for name, source in self.sets.items():
            if not isinstance(source, TextSource):
                raise L2VError(f"{self.override}.sets.{name}: expected texts, found {type(source).__name__}")
        if self.shares is None:
            return
        if self.alpha != 1:
            raise L2VError(f"{self.override}.shares and {self.override}.alpha exclude each other; give one")
        if self.shares.keys() != self.sets.keys():
            raise L2VError(
                f"{self.override}.shares: expected a number for each of {', '.join(self.sets)}; found "
                f"{', '.join(self.shares) or 'none'}"
            )
        for name, share in self.shares.items():
            if not 0 < share < math.inf:
                raise L2VError(f"{self.override}.shares.{name}={share}: expected a number above 0")

    def texts(self) -> Iterator[str]:
        """All texts, one set after the other, each once."""
        return chain.from_iterable(source.texts() for source in self.sets.values())

    def fingerprint(self) -> str:
        prints = [f"{name}:{source.fingerprint()}" for name, source in self.sets.items()]
        return f"mix:{self.shares}:{self.alpha}:" + hashlib.sha256("\n".join(prints).encode()).hexdigest()

    def joined_rows(self, make: Callable[[TextSource], datasets.Dataset]) -> "TextMixRows":
        """The rows that ``make`` gives for each set, as one."""
        return TextMixRows({name: make(source) for name, source in self.sets.items()}, self)

    def shares_of(self, rows: Mapping[str, int]) -> dict[str, float]:
        """The share of each set of so many rows; they add up to 1."""
        weights = self.shares or {name: float(count) ** self.alpha for name, count in rows.items()}
        return {name: weights[name] / sum(weights.values()) for name in rows}

    def check_validation(self, validation: object) -> None:
        """That no set is validated on what it trains on.

        Raises:
            L2VError: it is.
        """
        theirs = validation.sets.values() if isinstance(validation, TextMix) else [validation]
        prints = {source.fingerprint() for source in theirs}  # type: ignore[attr-defined]
        for name, source in self.sets.items():
            if source.fingerprint() in prints:
                raise L2VError(f"{self.override}: {name} trains and validates on the same texts; name others for one")


class TextMixRows(Rows):
    """Token rows of a mix, those of one set after those of another.

    Args:
        parts: the rows of each set.
        mix: whose sets they are.
        index: which of all rows, in order; None: all.
    """

    def __init__(self, parts: Mapping[str, datasets.Dataset], mix: TextMix, index: np.ndarray | None = None) -> None:
        super().__init__(datasets.concatenate_datasets(list(parts.values())), index)
        self.parts, self.mix = parts, mix
        self._ends = np.cumsum([len(part) for part in parts.values()])

    @property
    def sets(self) -> np.ndarray:
        """The number of each row's set (rows,)."""
        rows = np.arange(self._ends[-1]) if self.index is None else self.index
        return np.searchsorted(self._ends, rows, side="right")

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each set."""
        counts = np.bincount(self.sets, minlength=len(self.parts)).tolist()
        return dict(zip(self.parts, counts, strict=True))

    def spread(self, count: int) -> "TextMixRows":
        """At most ``count`` rows, at least one of each set: as many of each as there are, evenly spaced in it."""
        share = max(1, count // len(self.parts))
        begins = [0, *self._ends[:-1].tolist()]
        chosen = [
            begin + np.array(evenly(len(part), share) if len(part) > share else range(len(part)), dtype=np.int64)
            for begin, part in zip(begins, self.parts.values(), strict=True)
        ]
        return TextMixRows(self.parts, self.mix, np.concatenate(chosen))


class TextMixOrder(GlobalBatches):
    """Batches for training on several sets of texts, each read as often as its share says.

    With ``one_set_a_batch`` a batch comes from one set, which a low-discrepancy sequence (multiples of the golden
    ratio) chooses: after k batches each set has had k times its share, give or take one or two. Without it every batch
    has rows of all sets, as many as the batch has places for each share, rounded down or up by the same sequence.

    A set is passed over as often as its share asks, in a new shuffle each time, whatever the others do. No batch has a
    row twice; one that the end of a pass and the beginning of the next would both give it is left to the former. As in
    :class:`~l2v.data.order.TrainingOrder`, batch k is a function of the seed and k, and holds the same rows whatever
    the number of ranks.

    Args:
        sizes: rows of each set; the rows of the first come first.
        shares: of each set; they add up to 1.
        one_set_a_batch: whether a batch comes from one set.
        settings: see :class:`~l2v.data.order.GlobalBatches`.

    Raises:
        L2VError: a set has fewer rows than a batch takes of it.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        shares: Mapping[str, float],
        *,
        one_set_a_batch: bool,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        wanted = np.array([shares[name] for name in sizes])
        rows = 1 if one_set_a_batch else self.global_batch
        most = np.full(len(wanted), self.global_batch) if one_set_a_batch else np.ceil(np.round(rows * wanted, 9))
        for name, needed in zip(sizes, most.astype(int).tolist(), strict=True):
            if sizes[name] < needed:
                raise L2VError(
                    f"{self.needed}, {needed} of them of {name}, but its training data has {sizes[name]}; lower it or "
                    "give more data"
                )
        self.sizes = list(sizes.values())
        self._begins = np.cumsum([0, *self.sizes[:-1]])
        counts = _counts(wanted, rows, self.batches, seed_of(self.seed, "sets")) * (self.global_batch // rows)
        # (batches + 1, sets): rows of each set before a batch
        self._before = np.concatenate([np.zeros((1, len(wanted)), dtype=np.int64), np.cumsum(counts, axis=0)])
        self._passes: dict[int, tuple[int, np.ndarray]] = {}
        if self.rank == 0:
            read = self._before[-1] / self.sizes
            told = (
                f"{name} {100 * share:.3g}% ({size:,} rows, read {times:.2g} times)"
                for (name, size), share, times in zip(sizes.items(), wanted, read, strict=True)
            )
            say(f"shares of {'the batches' if one_set_a_batch else 'each batch'}: {', '.join(told)}")

    def rows_of(self, number: int) -> np.ndarray:
        before, after = self._before[number], self._before[number + 1]
        rows = [self._begins[n] + self._rows(n, *span) for n, span in enumerate(zip(before, after, strict=True))]
        return np.concatenate(rows)[shuffled(self.global_batch, seed_of(self.seed, "batch", number))]

    def _rows(self, number: int, begin: int, end: int) -> np.ndarray:
        """Rows ``begin`` to ``end`` of what is read of a set, as places in it."""
        current, place = divmod(int(begin), self.sizes[number])
        wanted = int(end - begin)
        rows = self._pass(number, current)[place : place + wanted]
        if len(rows) < wanted:
            following = self._pass(number, current + 1)
            rows = np.concatenate([rows, following[~np.isin(following, rows)][: wanted - len(rows)]])
        return rows

    def _pass(self, number: int, current: int) -> np.ndarray:
        if self._passes.get(number, (-1,))[0] != current:
            shuffle = shuffled(self.sizes[number], seed_of(self.seed, "set", number, "pass", current))
            self._passes[number] = current, shuffle
        return self._passes[number][1]


def _counts(shares: np.ndarray, rows: int, batches: int, seed: int) -> np.ndarray:
    """(batches, sets) int64: rows of each set in each batch of ``rows``, its share of them rounded down or up.

    What rounding down leaves of a batch is given out by systematic sampling: the fractions that sets lack lie side by
    side on a line, and a set gets a row where one of the points u, u + 1, ... falls into its own.
    """
    wanted = np.round(rows * shares, 9)
    whole = np.floor(wanted)
    edges = np.cumsum([0.0, *(wanted - whole)])
    edges[-1] = rows - whole.sum()
    points = ((np.arange(1, batches + 1) * _GOLDEN_RATIO + seed / 2**63) % 1)[:, None]
    return (whole + np.diff(np.ceil(edges - points), axis=1)).astype(np.int64)
