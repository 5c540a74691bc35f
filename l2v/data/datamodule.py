"""The LightningDataModule of all stages that train on token rows, and the dataset under it."""

import copy
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import datasets
import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

from l2v.data.collate import Row
from l2v.data.order import Pick, evenly
from l2v.data.texts import DataSource, TextSource


class Reader(Protocol):
    """What a stage decides about its data."""

    validation_rows: int

    def rows(self, source: Any, *, show: bool) -> "datasets.Dataset | Rows": ...

    def loader(self, rows: "Rows", *, training: bool, workers: int = 0) -> DataLoader[Any]: ...


class Rows(Dataset):
    """Token rows by :class:`~l2v.data.order.Pick`, a batch at a time: (row, key) tuples.

    Args:
        data: the rows; they are memory mapped.
        index: which of them, in which order; None: all.
    """

    def __init__(self, data: datasets.Dataset, index: np.ndarray | None = None) -> None:
        self.data, self.index = data, index

    def __len__(self) -> int:
        return len(self.data if self.index is None else self.index)

    def __getitems__(self, picks: list[Pick]) -> list[Row]:
        columns = self._columns(picks)
        rows = zip(*columns.values(), strict=True)
        return [(dict(zip(columns, row, strict=True)), pick.key) for row, pick in zip(rows, picks, strict=True)]

    def _columns(self, picks: list[Pick]) -> dict[str, list[Any]]:
        rows = [pick.row for pick in picks]
        return self.data[rows if self.index is None else self.index[rows].tolist()]

    def spread(self, count: int) -> "Rows":
        """At most ``count`` rows, evenly spaced."""
        if len(self) <= count:
            return self
        chosen = np.array(evenly(len(self), count))
        fewer = copy.copy(self)
        fewer.index = chosen if self.index is None else self.index[chosen]
        return fewer


@runtime_checkable
class Mixed(Protocol):
    """Several sets of texts, each tokenized by itself, as :class:`~l2v.data.text_mix.TextMix`."""

    def joined_rows(self, make: Callable[[TextSource], datasets.Dataset]) -> Rows: ...


class TokenData(L.LightningDataModule):
    """Training and validation data as token rows of the kind that the stage asks for.

    Args:
        stage: decides the rows (packed blocks, sentences, triplets) and how a batch is made of them.
        train: training data.
        validation: data to validate on; ``stage.validation_rows`` rows spread evenly over them are used.
        workers: loader processes; 0 loads in the training process.
    """

    def __init__(self, stage: Reader, train: DataSource, validation: DataSource, *, workers: int = 0) -> None:
        super().__init__()
        self.stage, self.train, self.validation, self.workers = stage, train, validation, workers

    def prepare_data(self) -> None:
        """Tokenize into the cache, on one process a node."""
        for source in (self.train, self.validation):
            self._rows(source, show=True)

    def setup(self, stage: str) -> None:
        self.train_rows = self._rows(self.train)
        self.validation_rows = self._rows(self.validation).spread(self.stage.validation_rows)

    def _rows(self, source: DataSource, *, show: bool = False) -> Rows:
        if isinstance(source, Mixed):
            return source.joined_rows(lambda one: cast(datasets.Dataset, self.stage.rows(one, show=show)))
        rows = self.stage.rows(source, show=show)
        return rows if isinstance(rows, Rows) else Rows(rows)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.stage.loader(self.train_rows, training=True, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.stage.loader(self.validation_rows, training=False, workers=self.workers)


def spread(data: datasets.Dataset, count: int) -> datasets.Dataset:
    """At most ``count`` rows, evenly spaced."""
    return data if len(data) <= count else data.select(evenly(len(data), count))
