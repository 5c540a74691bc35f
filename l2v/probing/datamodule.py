"""The LightningDataModule of the word stage: labelled words as vectors of a frozen model."""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from l2v.data.order import Pick, evenly
from l2v.errors import L2VError
from l2v.models.settings import DType
from l2v.probing.alignment import Aligned, Shift, align, word_vectors
from l2v.probing.states import FrozenModel, States, compute_states
from l2v.probing.words import WordSource, label_list, labels_of


class Probing(Protocol):
    """What the stage decides about its data."""

    column: str
    spans: bool
    shift: Shift
    states_dtype: DType
    batch_tokens: int
    validation_rows: int

    def resolved_layers(self, depth: int) -> list[int]: ...

    def build(self, labels: list[str], layers: list[int], hidden: int) -> None: ...

    def loader(self, rows: Any, *, training: bool, workers: int = 0) -> DataLoader[Any]: ...


class WordRows(Dataset):
    """A sentence a row. A batch is ``vectors`` (layers, words, hidden) float32 and ``labels`` (words,) int64."""

    def __init__(
        self, states: list[Tensor], aligned: Aligned, labels: list[list[int]], shift: Shift, rows: Tensor | None = None
    ) -> None:
        self.states, self.shift = states, shift
        self.begins, self.ends = torch.from_numpy(aligned.begins), torch.from_numpy(aligned.ends)
        self.sentences = aligned.sentences
        self.labels = torch.tensor([label for sentence in labels for label in sentence])
        self.rows = rows if rows is not None else torch.arange(len(labels))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, picks: list[Pick]) -> dict[str, Any]:
        rows = [int(self.rows[pick.row]) for pick in picks if pick.key >= 0]
        spans = [torch.arange(self.sentences[row], self.sentences[row + 1]) for row in rows]
        words = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.long)
        begins, ends = self.begins[words], self.ends[words]
        vectors = torch.stack([word_vectors(states, begins, ends, self.shift) for states in self.states])
        lengths = [len(span) for span in spans]
        return {"vectors": vectors, "labels": self.labels[words], "tokens": len(words), "lengths": lengths}


class WordData(L.LightningDataModule):
    """Training, validation and test sentences as vectors.

    Args:
        stage: decides labels, layers and how words are read.
        frozen: makes the model whose states are read; called once.
        train: training sentences.
        validation: sentences to validate on.
        test: sentences to score at the end; None scores the validation sentences only.
        workers: loader processes.
        show: progress bars.
    """

    def __init__(
        self,
        stage: Probing,
        frozen: Callable[[], FrozenModel],
        train: WordSource,
        validation: WordSource,
        test: WordSource | None,
        *,
        workers: int = 0,
        show: bool = True,
    ) -> None:
        super().__init__()
        self.stage, self.workers, self.show = stage, workers, show
        sources = {"train": train, "validation": validation} | ({"test": test} if test is not None else {})
        self._sources: dict[str, WordSource] = sources
        self._make = frozen
        self._frozen: FrozenModel | None = None
        self._prepared: dict[str, tuple[Aligned, States]] = {}
        self._rows: dict[str, WordRows] = {}
        self.labels: list[str] = []
        self.gold: dict[str, list[list[str]]] = {}
        """Part -> sentences -> labels, as they are scored."""

    def prepare_data(self) -> None:
        """Compute the states that the cache lacks, on one process a node."""
        if self._rows:
            return
        frozen, texts = self._read(self.show)
        layers = self.stage.resolved_layers(frozen.depth)
        compute_states(frozen, texts, layers, batch_tokens=self.stage.batch_tokens, show=self.show)

    def setup(self, stage: str) -> None:
        """Open the states and build the stage's probe for them."""
        if self._rows:
            return
        frozen, _ = self._read(False)
        layers = self.stage.resolved_layers(frozen.depth)
        self.labels = label_list(self.gold)
        number_of = {label: number for number, label in enumerate(self.labels)}
        for part, (aligned, states) in self._prepared.items():
            numbers = [[number_of[label] for label in labels] for labels in self.gold[part]]
            opened = [states.open(layer) for layer in layers]
            self._rows[part] = WordRows(opened, aligned, numbers, self.stage.shift)
        self.train_rows = self._rows["train"]
        self.validation_rows = _spread(self._rows["validation"], self.stage.validation_rows)
        self.stage.build(self.labels, layers, self.facts()["hidden"])

    def _read(self, show: bool) -> tuple[FrozenModel, list[tuple[Aligned, States]]]:
        frozen = self._frozen = self._frozen or self._make()
        for part, source in self._sources.items():
            if part in self._prepared:
                continue
            sentences = list(source.sentences())
            if not sentences:
                raise L2VError(f"data.{part}: no sentence; expected at least one")
            self.gold[part] = [labels_of(s, self.stage.column, spans=self.stage.spans) for s in sentences]
            aligned = align([s.words for s in sentences], frozen.tokenizer, frozen.max_length, show=show)
            self._prepared[part] = (aligned, States.of(frozen, aligned, self.stage.states_dtype))
        return frozen, list(self._prepared.values())

    def facts(self) -> dict[str, Any]:
        """Of the model, as the encoding pass saw it."""
        return self._prepared["train"][1].facts()

    def scored(self) -> dict[str, WordRows]:
        """What is scored at the end, all sentences of it."""
        return {part: rows for part, rows in self._rows.items() if part != "train"}

    def train_dataloader(self) -> DataLoader[Any]:
        return self.stage.loader(self.train_rows, training=True, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.stage.loader(self.validation_rows, training=False, workers=self.workers)


def _spread(rows: WordRows, count: int) -> WordRows:
    """At most ``count`` sentences, evenly spaced."""
    if len(rows) <= count:
        return rows
    spread = copy.copy(rows)
    spread.rows = torch.tensor(evenly(len(rows), count))
    return spread
