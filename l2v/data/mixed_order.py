"""The order of rows of several data sets.

A batch is of one set, and no text of it is another row's query or positive.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2v.data.order import GlobalBatches, ListedBatches, Pick, ValidationOrder, seed_of, shuffled
from l2v.errors import L2VError
from l2v.progress import say


@dataclass(frozen=True)
class RowTexts:
    """Which texts rows of queries and documents have, as hashes: equal texts have equal ones."""

    sets: np.ndarray
    """The number of each row's data set (rows,)."""
    queries: np.ndarray
    """int64 (rows,)."""
    documents: np.ndarray
    """int64 (documents,): those of the first row, its positive first, then those of the second row, ..."""
    offsets: np.ndarray
    """int64 (rows + 1,): the documents of row n are ``documents[offsets[n]:offsets[n + 1]]``."""

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: np.ndarray) -> "RowTexts":
        """Those of some rows."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return RowTexts(self.sets[rows], self.queries[rows], self.documents[places], offsets)


class MixedOrder(GlobalBatches):
    """Batches for training on several data sets, each batch from one of them and without false negatives.

    No two rows of a global batch have the same query or the same positive, and no document of one is the query or the
    positive of another. A pass over a set reads every row at most once, save where a set has so many equal texts that
    the batches run out; rows that fill no batch are left out of the pass. As in :class:`TrainingOrder`, batch k is a
    function of the seed and k, holds the same rows whatever the number of ranks, and costs no replay of those before.

    Batches are dealt in rounds. In a round a set has as many batches as a pass over it has (``alpha`` = 1), or a share
    of the same total that goes as that number to the power ``alpha``; their order is shuffled.

    Args:
        texts: which texts the rows have.
        names: of the data sets, for messages.
        alpha: 1: batches in proportion to the sets' sizes; 0: as many of every set.
        settings: see :class:`~l2v.data.order.GlobalBatches`.

    Raises:
        L2VError: no set has the rows of a batch.
    """

    def __init__(self, texts: RowTexts, *, names: Sequence[str], alpha: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        everyone = [
            SetBatches(
                texts, np.flatnonzero(texts.sets == number), self.global_batch, seed_of(self.seed, "set", number)
            )
            for number in range(len(names))
        ]
        self.sets = [one for one in everyone if one.batches]
        self.left_out = [name for name, one in zip(names, everyone, strict=True) if not one.batches]
        """Sets that have not the rows of a batch."""
        if not self.sets:
            raise L2VError(f"{self.needed} without equal texts, but no data set has them; lower it or give more data")
        if self.left_out and self.rank == 0:
            say(f"{self.needed}; left out, as they have fewer: {', '.join(self.left_out)}", style="yellow")
        self.shares = _shares([one.batches for one in self.sets], alpha)
        self.round_batches = sum(self.shares)
        """Batches a round."""
        self._round, self._dealt = -1, np.empty((0, 2), dtype=np.int64)

    def rows_of(self, number: int) -> np.ndarray:
        current, offset = divmod(number, self.round_batches)
        if current != self._round:
            self._round, self._dealt = current, self._deal(current)
        chosen, place = self._dealt[offset].tolist()
        return self.sets[chosen].batch(current * self.shares[chosen] + place)

    def _deal(self, number: int) -> np.ndarray:
        """(batches a round, 2): the set of each batch of a round, and which of its batches in this round."""
        dealt = np.repeat(np.arange(len(self.shares)), self.shares)
        dealt = dealt[shuffled(len(dealt), seed_of(self.seed, "round", number))]
        return np.stack([dealt, _rank(dealt)], axis=1)


def _shares(batches: list[int], alpha: float) -> list[int]:
    """How many batches of each set a round has: their total is kept, and every set has at least one."""
    weights = np.array(batches, dtype=np.float64) ** alpha
    wanted = weights / weights.sum() * sum(batches)
    shares = np.maximum(1, np.floor(wanted)).astype(np.int64)
    for one in np.argsort(shares - wanted, kind="stable")[: max(0, sum(batches) - int(shares.sum()))]:
        shares[one] += 1
    return shares.tolist()


class SetBatches:
    """The batches of one data set, pass after pass; each is free of equal texts.

    A pass is a shuffle dealt out into batches, rows of a common text to different ones. A row that clashes with an
    earlier one of its batch makes place for a row from the pool: the rows that clashed elsewhere and those that were
    left over. Where the pool has none that fits, some batches are given up and fill the others. Only texts that can
    clash at all are looked at, so that clean data cost a shuffle. Every pass has the number of batches that the first
    has, so that a batch can be found without making the passes before; one that comes out short is filled up with
    batches of the first.

    Args:
        texts: of all rows.
        rows: numbers of this set's rows.
        size: rows a batch.
        seed: of the shuffles.
    """

    def __init__(self, texts: RowTexts, rows: np.ndarray, size: int, seed: int) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        own = texts.take(rows)
        hashes = np.sort(np.concatenate([own.queries, own.documents]))
        repeated = hashes[1:][hashes[1:] == hashes[:-1]]
        common = repeated[np.append(True, repeated[1:] != repeated[:-1])[: len(repeated)]]
        del hashes, repeated
        # (rows,): numbers of the texts, the same for equal ones
        self._queries = _numbered(own.queries, common)
        self._positives = _numbered(own.documents[own.offsets[:-1]], common)
        self._clash = _Clashes(self._queries, self._positives, own, common)
        self._texts = len(common) + len(rows)
        self._most = min(self._bound(self._queries), self._bound(self._positives))
        # more rows of a text than batches cannot be placed
        self._frequent = [t for t in (self._queries, self._positives) if np.bincount(t).max(initial=0) > self._most]
        # the kind of text that more rows have in common
        shared = min((self._queries, self._positives), key=lambda texts: np.count_nonzero(np.bincount(texts)))
        self._grouping = shared if np.bincount(shared).max(initial=0) > 1 else None
        self._pass, self._made = 0, self._make(0)
        self.batches = len(self._made)
        """Batches a pass."""

    def batch(self, number: int) -> np.ndarray:
        """The rows of a batch (size,); ``number`` counts on through the passes."""
        current, place = divmod(number, self.batches)
        if current != self._pass:
            made = self._make(current)[: self.batches]
            if len(made) < self.batches:
                made = np.concatenate([made, self._make(0)[len(made) :]])
            self._pass, self._made = current, made
        return self.rows[self._made[place]]

    def _bound(self, texts: np.ndarray) -> int:
        """The most batches that rows can fill of which only one with the same text is in a batch."""
        counts = np.bincount(texts)
        low, high = 0, len(texts) // self.size
        while low < high:
            middle = (low + high + 1) // 2
            enough = np.minimum(counts, middle).sum() >= middle * self.size
            low, high = (middle, high) if enough else (low, middle - 1)
        return low

    def _make(self, number: int) -> np.ndarray:
        """The batches of a pass (batches, size), as places in ``rows``."""
        order = shuffled(len(self.rows), seed_of(self.seed, "pass", number)).astype(np.int32)
        for texts in self._frequent:
            order = order[_rank(texts[order]) < self._most]
        count = min(self._most, len(order) // self.size)
        if count == 0:
            return np.empty((0, self.size), dtype=np.int32)
        if self._grouping is not None:  # rows of a text side by side, so that they are dealt to different batches
            groups = shuffled(self._texts, seed_of(self.seed, "groups", number))
            order = order[np.argsort(groups[self._grouping[order]], kind="stable")]
        table, spare = order[: count * self.size].reshape(self.size, count).T.copy(), order[count * self.size :]
        clashing = self._clash.within(table)
        if not clashing.any():
            return table
        return self._repaired(table, clashing, spare)

    def _repaired(self, table: np.ndarray, clashing: np.ndarray, spare: np.ndarray) -> np.ndarray:
        pool = deque([*table[clashing].tolist(), *spare.tolist()])
        short = np.flatnonzero(clashing.any(axis=1)).tolist()
        kept = {one: table[one][~clashing[one]].tolist() for one in short}
        while True:
            for one in short:
                self._fill(kept[one], pool)
                if len(kept[one]) == self.size:
                    table[one] = kept.pop(one)
            short = [one for one in short if one in kept]
            if not short:
                break
            # as many as it takes to fill the others, those that lack most first
            lacking = sum(self.size - len(kept[one]) for one in short)
            given_up = sorted(short, key=lambda one: len(kept[one]))[: max(1, lacking // self.size)]
            for one in given_up:
                pool.extend(kept.pop(one))
            short = [one for one in short if one in kept]
            table[given_up] = -1
        return table[table[:, 0] >= 0]

    def _fill(self, batch: list[int], pool: deque[int]) -> None:
        """Move rows that clash with none of the batch from the pool; the others go to the pool's end."""
        texts = self._clash.texts_of(batch)
        tries = min(len(pool), 4 * (self.size - len(batch)) + 200)
        while tries and len(batch) < self.size:
            row = pool.popleft()
            if self._clash.join(texts, row):
                batch.append(row)
            else:
                pool.append(row)
            tries -= 1


class _Clashes:
    """Which rows must not be in one batch: those that share a text that is query or positive of one of them."""

    def __init__(self, queries: np.ndarray, positives: np.ndarray, texts: RowTexts, common: np.ndarray) -> None:
        rows = len(queries)
        places = [np.flatnonzero(numbers < len(common)) for numbers in (queries, positives)]
        document, number = _found(texts.documents, common)
        row = np.concatenate([*places, np.searchsorted(texts.offsets, document, side="right") - 1])
        text = np.concatenate([queries[places[0]], positives[places[1]], number])
        own = np.arange(len(row)) < len(places[0]) + len(places[1])  # query or positive, not a hard negative
        # once a row and text; an own text counts as own
        order = np.lexsort((~own, text, row))
        row, text, own = row[order], text[order], own[order]
        once = np.ones(len(row), dtype=bool)
        once[1:] = (row[1:] != row[:-1]) | (text[1:] != text[:-1])
        row, text, own = row[once], text[once], own[once]
        shared = (np.bincount(text, minlength=1)[text] > 1) & (np.bincount(text, weights=own, minlength=1)[text] > 0)
        self.text, self.own = text[shared].astype(np.int32), own[shared]
        self.begins = np.searchsorted(row[shared], np.arange(rows + 1))

    def within(self, table: np.ndarray) -> np.ndarray:
        """(batches, size) bool: the rows that share a text with an earlier row of their batch."""
        flat = table.reshape(-1)
        lengths = np.diff(self.begins)[flat]
        place = np.repeat(np.arange(len(flat)), lengths)
        entry = np.arange(len(place)) + np.repeat(self.begins[flat] - np.cumsum(lengths) + lengths, lengths)
        text, own, batch = self.text[entry], self.own[entry], place // table.shape[1]
        order = np.lexsort((place, ~own, text, batch))
        text, own, batch, place = text[order], own[order], batch[order], place[order]
        first = np.ones(len(text), dtype=bool)
        first[1:] = (text[1:] != text[:-1]) | (batch[1:] != batch[:-1])
        # own texts come first in a group: a group whose first is none's own is of hard negatives only
        group = np.cumsum(first) - 1
        clashing = np.zeros(len(flat), dtype=bool)
        if len(text):
            clashing[place[~first & own[first][group]]] = True
        return clashing.reshape(table.shape)

    def texts_of(self, batch: list[int]) -> dict[int, bool]:
        """Text -> whether it is some row's own, of all texts of a batch that can clash."""
        texts: dict[int, bool] = {}
        for row in batch:
            for text, own in self._of(row):
                texts[text] = texts.get(text, False) or own
        return texts

    def join(self, texts: dict[int, bool], row: int) -> bool:
        """Add a row's texts to those of a batch, if it clashes with none."""
        mine = self._of(row)
        if any(text in texts and (own or texts[text]) for text, own in mine):
            return False
        for text, own in mine:
            texts[text] = texts.get(text, False) or own
        return True

    def _of(self, row: int) -> list[tuple[int, bool]]:
        span = slice(self.begins[row], self.begins[row + 1])
        return list(zip(self.text[span].tolist(), self.own[span].tolist(), strict=True))


def _found(texts: np.ndarray, common: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the texts that are among the common ones, which are sorted, and the numbers they have there."""
    if not len(common):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    number = np.searchsorted(common, texts).clip(max=len(common) - 1)
    place = np.flatnonzero(common[number] == texts)
    return place, number[place]


def _numbered(texts: np.ndarray, common: np.ndarray) -> np.ndarray:
    """A number for each text: that of the common ones, and one of its own for each of the others (int32)."""
    numbers = np.arange(len(common), len(common) + len(texts), dtype=np.int32)
    place, number = _found(texts, common)
    numbers[place] = number
    return numbers


def _rank(values: np.ndarray) -> np.ndarray:
    """For each value, how many equal ones are before it."""
    order = np.argsort(values, kind="stable")
    grouped = values[order]
    first = np.ones(len(values), dtype=bool)
    first[1:] = grouped[1:] != grouped[:-1]
    begins = np.flatnonzero(first)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(begins, np.diff(np.append(begins, len(values))))
    return ranks


class MixedValidationOrder(ListedBatches):
    """Every row once, each batch from one data set; the ranks have equal numbers of batches, filled up as in
    :class:`ValidationOrder`."""

    def __init__(self, sets: np.ndarray, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._batches: list[list[Pick]] = []
        for number in np.unique(sets):
            rows = np.flatnonzero(sets == number).tolist()
            for batch in ValidationOrder(len(rows), batch_size=batch_size, rank=rank, world_size=world_size):
                self._batches.append([Pick(rows[row], rows[row] if key >= 0 else -1) for row, key in batch])
