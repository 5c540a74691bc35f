"""Tasks of mteb from a user's files: similarity, pairs, classification, clustering and retrieval."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from l2v.data.files import RECORD_FILES, content, find, lines
from l2v.data.readers import Column, label, number, table_rows
from l2v.encoders.text_encoder import TextEncoder
from l2v.errors import L2VError
from l2v.evaluation.mteb.package import known_result, mteb_encoder, mteb_package, result_cache, run_task, texts_of
from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task

_ENGLISH = "eng-Latn"
Files = str | list[str]
"""A path, a glob pattern, or a list of them."""


@dataclass(frozen=True, kw_only=True)
class LocalSet(Task):
    """What tasks from files share.

    Attributes:
        name: of the task, in tables and of its file of scores.
        like: a task of mteb whose settings it has, as STSBenchmark; None: those of mteb's class for such tasks.
        instruction: put before queries and symmetric texts, without ":" at the end; None: none.
        language: of the texts, as mteb writes it, e.g. deu-Latn; with ``like`` that task's own counts, if it
            has one.
        sample: how many of the rows to take, drawn once and for all; the name says so. None: all.
        predictions: keep what is predicted, too, when it is scored: the cosine of each pair, the documents that each
            query finds, ... in mteb's format, under ``evaluation/mteb/predictions`` of the run's folder.
        batch_size: texts in a batch.
    """

    name: str
    like: str | None = None
    instruction: str | None = None
    language: str = _ENGLISH
    sample: Annotated[int, Ge(2)] | None = None
    predictions: bool = False
    batch_size: Annotated[int, Ge(1)] = 32

    sampled: ClassVar[str] = "rows"
    kind: ClassVar[str] = ""
    main_score: ClassVar[str] = ""
    base: ClassVar[str] = ""
    """mteb's class."""
    endings: ClassVar[tuple[str, ...]] = (*RECORD_FILES, ".txt")
    """Of its files."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise L2VError(f"evaluation: name={self.name!r}: expected a name without /, it becomes a file's")
        self._paths()

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"{self.name} ({self.sample:,} {self.sampled})" if self.sample else self.name

    def check(self, store: ResultStore) -> None:
        """Raise an L2VError where mteb is missing or a file cannot be read."""
        self._task_with_data()

    def parts(self, store: ResultStore) -> list["LocalSet"]:
        """Itself, unless its score is there, and where they are asked for its predictions."""
        own = self._own(store)
        kept = self._kept(own)
        there = kept is None or (kept / f"{self._task_name}_predictions.json").exists()
        return [] if there and known_result(self._task(), own) is not None else [self]

    def _kept(self, own: ResultStore) -> Path | None:
        """The folder of its predictions, where they are asked for."""
        return own.folder / "predictions" / own.fingerprint if self.predictions else None

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """Score it into ``store``, unless its score is there; the entry is that of :meth:`table`."""
        if self.parts(store):
            store = self._own(store)
            model = mteb_encoder(encoder, store, lambda _: self.instruction, self.batch_size, show)
            run_task(self._task_with_data(), model, result_cache(store), self._kept(store))
        return {}

    def table(self, name: str, store: ResultStore, scored: Entries) -> Entries:
        """The score in ``store``, as an entry."""
        result = known_result(self._task(), self._own(store))
        details = {key: value for key, value in result.scores["test"][0].items() if isinstance(value, int | float)}
        return {name: entry(self.label, self.metric, round(float(result.get_score()), 6), details)}

    def evaluated_texts(self) -> Iterator[str]:
        """The texts that are scored; of classification without those that its classifier is trained on."""
        yield from texts_of(self._task_with_data())

    def data_fingerprint(self) -> str:
        """What pins the data: the files' content."""
        return content(self._paths())

    def _paths(self) -> list[Path]:
        raise NotImplementedError

    def _dataset(self) -> Any:
        """The data as mteb's class wants it."""
        raise NotImplementedError

    @property
    def _task_name(self) -> str:
        return f"{self.name}.{self.sample}" if self.sample else self.name

    def _task_with_data(self) -> Any:
        task = self._task()
        task.dataset = self._dataset()
        task.data_loaded = True
        return task

    def _task(self) -> Any:
        """mteb's task, without its data."""
        mteb = mteb_package()
        import mteb.abstasks as classes
        from mteb.abstasks import task_metadata

        own: dict[str, Any] = {
            "name": self._task_name,
            "dataset": {"path": "local", "revision": self._pin()},
            "description": f"{self.name}, from files",
            "superseded_by": None,
        }
        base = getattr(classes, self.base)
        task: Any
        if self.like is None:
            fields: dict[str, Any] = {
                "type": self.kind,
                "category": "t2t",
                "eval_splits": ["test"],
                "eval_langs": [self.language],
                "main_score": self.main_score,
            }
            task = type("LocalTask", (base,), {"metadata": task_metadata.TaskMetadata(**own, **fields)})()
        else:
            try:
                task = deepcopy(mteb.get_task(self.like))
            except KeyError:
                task = None
            if not isinstance(task, base):
                newer = f"{self.like}.v2"
                hint = f"; {newer} is one" if task is not None and _is_a(newer, base) else ""
                raise L2VError(f"{self.name}: like={self.like}: mteb has no {self.kind} task of that name{hint}")
            own["eval_splits"] = ["test"]
            if isinstance(task.metadata.eval_langs, dict):  # of subsets, which files have not
                own["eval_langs"] = [self.language]
                task.hf_subsets = ["default"]
            task.metadata = task.metadata.model_copy(update=own)
        if self.base == "AbsTaskClustering":
            task.max_fraction_of_documents_to_embed = None  # `sample` chooses them
        return task

    def _pin(self) -> str:
        """A hash of the settings and the files' content."""
        unneeded = ("batch_size", "predictions", *(["language"] if self.language == _ENGLISH else []))
        settings = {key: value for key, value in asdict(self).items() if key not in unneeded}
        return hashlib.sha256(json.dumps([settings, self.data_fingerprint()], default=str).encode()).hexdigest()[:16]

    def _own(self, store: ResultStore) -> ResultStore:
        """Scores of sets that share a name, and differ in their instruction, are kept apart."""
        return store.under(self._pin())

    def _find(self, files: Files) -> list[Path]:
        try:
            return find(files, self.name, self.endings)
        except L2VError as error:
            raise L2VError(f"{error}; to do without the task: '~evaluation.tasks.<its key>'") from None

    def _drawn(self, rows: list[Any], sample: int | None, key: str = "") -> list[Any]:
        """``sample`` of the rows, in their order."""
        if sample is None or sample >= len(rows):
            return rows
        drawn = random.Random(f"{self.name}{key}").sample(range(len(rows)), sample)
        return [rows[number] for number in sorted(drawn)]


@dataclass(frozen=True, kw_only=True)
class _PairFiles(LocalSet):
    """Pairs of texts with a number each.

    Attributes:
        files: .jsonl, .csv, .tsv, .parquet; or unquoted text with ``delimiter``. Columns by number: of text without a
            header line.
        first: column of the first text.
        second: of the second.
        delimiter: between the columns of unquoted text.
    """

    files: Files
    first: Column = "sentence1"
    second: Column = "sentence2"
    delimiter: str | None = None

    sampled: ClassVar[str] = "pairs"

    def _paths(self) -> list[Path]:
        return self._find(self.files)

    def _pairs(self, column: Column, kind: Callable[[Any], Any], called: str) -> Any:
        """The data set, with the numbers of ``column`` under the name that mteb has for them."""
        rows = table_rows(self._paths(), (self.first, self.second), column, kind, self.delimiter, self.name)
        return splits_of(test=columns_of(self._drawn(rows, self.sample), "sentence1", "sentence2", called))


@dataclass(frozen=True, kw_only=True)
class StsSet(_PairFiles):
    """Sentence pairs with human scores: Spearman correlation of the cosine.

    Attributes:
        score: column of the human score.
    """

    score: Column = "score"

    metric = "Spearman"
    kind: ClassVar[str] = "STS"
    main_score: ClassVar[str] = "cosine_spearman"
    base: ClassVar[str] = "AbsTaskSTS"

    def _dataset(self) -> Any:
        return self._pairs(self.score, number, "score")


@dataclass(frozen=True, kw_only=True)
class PairSet(_PairFiles):
    """Text pairs that belong together (1) or not (0): average precision of the cosine.

    Attributes:
        label_column: of the label, 0 or 1.
    """

    label_column: Column = "label"

    metric = "average precision"
    kind: ClassVar[str] = "PairClassification"
    main_score: ClassVar[str] = "cosine_ap"
    base: ClassVar[str] = "AbsTaskPairClassification"

    def _dataset(self) -> Any:
        return self._pairs(self.label_column, _binary, "labels")


@dataclass(frozen=True, kw_only=True)
class ClassificationSet(LocalSet):
    """Labelled texts: accuracy of a logistic regression on the vectors of a few texts a label, ten times over.

    ``sample`` draws that many rows of the training and of the test files each.

    Attributes:
        train: .jsonl, .csv, .tsv, .parquet; or unquoted text with ``delimiter``.
        test: files.
        text: column of the text.
        label_column: of the label.
        delimiter: between the columns of unquoted text.
    """

    train: Files
    test: Files
    text: Column = "text"
    label_column: Column = "label"
    delimiter: str | None = None

    metric = "accuracy"
    kind: ClassVar[str] = "Classification"
    main_score: ClassVar[str] = "accuracy"
    base: ClassVar[str] = "AbsTaskClassification"

    def _paths(self) -> list[Path]:
        return [*self._find(self.train), *self._find(self.test)]

    def _dataset(self) -> Any:
        parts = {}
        for part, files in (("train", self.train), ("test", self.test)):
            rows = table_rows(self._find(files), (self.text,), self.label_column, label, self.delimiter, self.name)
            parts[part] = self._drawn(rows, self.sample, part)
        labels = {label: number for number, label in enumerate(dict.fromkeys(row[-1] for row in parts["train"]))}
        if unknown := [label for _, label in parts["test"] if label not in labels]:
            if self.sample is None:
                raise L2VError(f"{self.name}: the label {unknown[0]!r} of the test files is not in the training files")
            labels |= {label: len(labels) + number for number, label in enumerate(dict.fromkeys(unknown))}
        numbered = {part: [(text, labels[label]) for text, label in rows] for part, rows in parts.items()}
        return splits_of(**{part: columns_of(rows, "text", "label") for part, rows in numbered.items()})


@dataclass(frozen=True, kw_only=True)
class ClusteringSet(LocalSet):
    """Labelled texts: V-measure of k-means on their vectors, over ten draws.

    Attributes:
        files: .jsonl, .csv, .tsv, .parquet; or unquoted text with ``delimiter``; beside ``labels``, a text a line.
        text: column of the text.
        label_column: of the label.
        labels: text files with a label a line, beside ``files``.
        delimiter: between the columns of unquoted text.
    """

    files: Files
    text: Column = "text"
    label_column: Column = "label"
    labels: Files | None = None
    delimiter: str | None = None

    metric = "V-measure"
    sampled: ClassVar[str] = "texts"
    kind: ClassVar[str] = "Clustering"
    main_score: ClassVar[str] = "v_measure"
    base: ClassVar[str] = "AbsTaskClustering"

    def _paths(self) -> list[Path]:
        return [*self._find(self.files), *(self._find(self.labels) if self.labels else [])]

    def rows(self) -> list[tuple[str, str]]:
        """The texts with their labels, as drawn.

        Raises:
            L2VError: a file is broken.
        """
        rows: list[Any]
        if self.labels:
            texts, labels = (_lines(self._find(files)) for files in (self.files, self.labels))
            if len(texts) != len(labels):
                raise L2VError(f"{self.name}: {len(texts)} texts, but {len(labels)} labels in {self.labels}")
            rows = list(zip(texts, labels, strict=True))
        else:
            rows = table_rows(self._find(self.files), (self.text,), self.label_column, label, self.delimiter, self.name)
        return self._drawn(rows, self.sample)

    def _dataset(self) -> Any:
        return splits_of(test=columns_of(self.rows(), "sentences", "labels"))


def _is_a(name: str, base: type) -> bool:
    """Whether mteb has a task of a name and a kind."""
    try:
        return isinstance(mteb_package().get_task(name), base)
    except KeyError:
        return False


def _binary(value: Any) -> int:
    if str(value) not in ("0", "1", "True", "False"):
        raise ValueError(f"expected a label of 0 or 1, found {value!r}")
    return int(str(value) in ("1", "True"))


def columns_of(rows: list[tuple[Any, ...]], *names: str) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})


def splits_of(**parts: Any) -> Any:
    from datasets import DatasetDict

    return DatasetDict(parts)


def _lines(paths: list[Path]) -> list[str]:
    return [line.strip() for path in paths for line in lines(path)]
