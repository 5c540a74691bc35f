"""The LightningDataModule of all stages that train on token rows, and the dataset under it."""

from typing import Any, Protocol

import datasets
import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from l2v.data.collate import Row
from l2v.data.order import Pick
from l2v.data.texts import TextSource


class Reader(Protocol):
    """What a stage decides about its data."""

    validation_rows: int

    def rows(self, source: TextSource, *, show: bool) -> datasets.Dataset: ...

    def loader(self, rows: "Rows", *, training: bool, workers: int = 0) -> DataLoader[Any]: ...


class Rows(Dataset):
    """Token rows by :class:`~l2v.data.order.Pick`: (row, key) tuples, a batch at a time."""

    def __init__(self, data: datasets.Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, picks: list[Pick]) -> list[Row]:
        columns = self.data[[pick.row for pick in picks]]
        rows = zip(*columns.values(), strict=True)
        return [(dict(zip(columns, row, strict=True)), pick.key) for row, pick in zip(rows, picks, strict=True)]


class TokenData(L.LightningDataModule):
    """Training and validation texts as token rows of the kind that the stage asks for.

    Args:
        stage: decides the rows (packed blocks, sentences) and how a batch is made of them.
        train: training texts.
        validation: texts to validate on; ``stage.validation_rows`` rows spread evenly over them are used.
        workers: loader processes; 0 loads in the training process.
    """

    def __init__(self, stage: Reader, train: TextSource, validation: TextSource, *, workers: int = 0) -> None:
        super().__init__()
        self.stage, self.train, self.validation, self.workers = stage, train, validation, workers

    def prepare_data(self) -> None:
        """Tokenize into the cache, on one process a node."""
        for source in (self.train, self.validation):
            self.stage.rows(source, show=True)

    def setup(self, stage: str) -> None:
        self.train_rows = Rows(self.stage.rows(self.train, show=False))
        self.validation_rows = Rows(spread(self.stage.rows(self.validation, show=False), self.stage.validation_rows))

    def train_dataloader(self) -> DataLoader[Any]:
        return self.stage.loader(self.train_rows, training=True, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.stage.loader(self.validation_rows, training=False, workers=self.workers)


def spread(data: datasets.Dataset, count: int) -> datasets.Dataset:
    """At most ``count`` rows, evenly spaced."""
    if len(data) <= count:
        return data
    return data.select(torch.linspace(0, len(data) - 1, count).round().long().tolist())
