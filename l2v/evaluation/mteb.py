"""MTEB with mteb's own task classes and scorers.

Scores are kept in mteb's own format under ``evaluation/mteb``, a file a task, as soon as they are there: an evaluation
that was stopped goes on with the task it was at. mteb is imported where it is used, so that configs are checked
without it.
"""

import contextlib
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from l2v.encoder import Encoder
from l2v.errors import L2VError, first_line
from l2v.evaluation.suite import Kept, entry
from l2v.progress import say

_CATEGORIES = {
    "Retrieval": "Retrieval",
    "Reranking": "Reranking",
    "Clustering": "Clustering",
    "PairClassification": "Pair classification",
    "Classification": "Classification",
    "STS": "STS",
    "Summarization": "Summarization",
}
"""mteb's types of tasks, in the order of the paper's tables."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark of mteb: its average over tasks, and the average of each category (scores from 0 to 1).

    Attributes:
        benchmark: mteb's name of it: ``MTEB(eng, v1)`` are the 56 tasks of the paper.
        tasks: some of its tasks by name; None: all.
        instructions: those of the paper, and mteb's own for tasks that the paper has not; False: none.
        folder: data sets as folders ``<owner>/<name>``, where they are not to come from the hub.
        batch_size: texts in a batch.
    """

    benchmark: str
    tasks: list[str] | None = None
    instructions: bool = True
    folder: str | None = None
    batch_size: Annotated[int, Ge(1)] = 32

    label: ClassVar[str] = "Average"
    metric: ClassVar[str] = "main score"
    needs_head: ClassVar[bool] = False

    def check(self, kept: Kept) -> None:
        """Raise an L2VError where mteb, a task or its data is missing. Loads nothing."""
        pinned = self._pinned(kept)
        missing = [t for t in self._leaves() if known_result(t, pinned) is None and not self._has_data(t)]
        if missing and not _hub_answers():
            absent = [task for task in missing if not _in_hub_cache(task.metadata.dataset["path"])]
            if absent:
                names = ", ".join(f"{task.metadata.name} ({task.metadata.dataset['path']})" for task in absent)
                place = self.folder or "<folder>"
                raise L2VError(
                    f"the hub cannot be reached, and there is no data of {len(absent)} task(s): {names}; put each into "
                    f"{place}/<owner>/<name>, as `hf download --repo-type dataset <owner>/<name> --local-dir "
                    f"{place}/<owner>/<name>` does, and set evaluation.folder={place}"
                )

    def parts(self, kept: Kept) -> list["Benchmark"]:
        """A benchmark of one task for each that has no score yet."""
        pinned = self._pinned(kept)
        return [
            replace(self, tasks=[task.metadata.name])
            for task in self._tasks()
            if any(known_result(leaf, pinned) is None for leaf in _leaves(task))
        ]

    def fill(self, encoder: Encoder, kept: Kept, *, show: bool = False) -> None:
        """Score what has no score yet."""
        from l2v.evaluation.mteb_model import instruction_of

        kept, cache = self._pinned(kept), result_cache(kept)
        instruction = instruction_of if self.instructions else lambda task: None
        model = wrapped(encoder, kept, instruction, self.batch_size, show)
        for task in self._tasks():
            parts = []
            for leaf in _leaves(task):
                result = known_result(leaf, kept)
                parts.append(run_task(self._with_data(leaf), model, cache) if result is None else result)
            if task.is_aggregate:
                cache.save_to_cache(task.combine_task_results(parts), model.mteb_model_meta)

    def table(self, name: str, kept: Kept) -> dict[str, dict[str, Any]]:
        """The averages, as entries of a suite's scores. The average's details are the scores of the tasks."""
        kept = self._pinned(kept)
        results = {}
        for task in self._tasks():
            parts = [known_result(leaf, kept) for leaf in _leaves(task)]
            result = task.combine_task_results(parts) if task.is_aggregate else parts[0]
            results[task.metadata.name] = (task.metadata.type, round(float(result.get_score()), 6))
        return self._averages(name, results)

    def evaluated_texts_by_task(self) -> dict[str, Iterator[str]]:
        """The texts of each task, which are loaded when they are asked for."""
        return {leaf.metadata.name: self._texts(leaf) for leaf in self._leaves()}

    def _texts(self, task: Any) -> Iterator[str]:
        task = self._with_data(task)
        load(task)
        yield from texts_of(task)

    def _averages(self, name: str, results: dict[str, tuple[str, float]]) -> dict[str, dict[str, Any]]:
        """The average of all tasks, then that of each category, from each task's type and score."""
        table = {name: _average(self.label, {task: score for task, (_, score) in results.items()})}
        kinds = [kind for kind in _CATEGORIES if any(kind == found for found, _ in results.values())]
        kinds += sorted({kind for kind, _ in results.values()} - set(kinds))
        for kind in kinds:
            scores = {task: score for task, (found, score) in results.items() if found == kind}
            table[f"{name}_{kind.lower()}"] = _average(_CATEGORIES.get(kind, kind), scores)
        return table

    def _tasks(self) -> list[Any]:
        mteb = mteb_package()
        try:
            known = {task.metadata.name: task for task in mteb.get_benchmark(self.benchmark).tasks}
        except KeyError as error:
            raise L2VError(f"evaluation: benchmark={self.benchmark}: mteb has none ({first_line(error)})") from None
        for task in self.tasks or ():
            if task not in known:
                raise L2VError(f"evaluation: {self.benchmark} has no task {task}; it has {', '.join(known)}")
        return [known[task] for task in self.tasks or known]

    def _leaves(self) -> list[Any]:
        return [leaf for task in self._tasks() for leaf in _leaves(task)]

    def _pinned(self, kept: Kept) -> Kept:
        """Scores with and without instructions are kept apart."""
        return kept if self.instructions else Kept(kept.folder, kept.encoder, f"{kept.fingerprint}-plain")

    def _local(self, task: Any) -> Path:
        return Path(self.folder or "").expanduser() / task.metadata.dataset["path"]

    def _has_data(self, task: Any) -> bool:
        return self.folder is not None and self._local(task).is_dir()

    def _with_data(self, task: Any) -> Any:
        """The task with its data's place; a copy, because mteb hands the same one to all."""
        task = deepcopy(task)
        if self._has_data(task):
            dataset = {**task.metadata.dataset, "path": str(self._local(task))}
            task.metadata = task.metadata.model_copy(update={"dataset": dataset})
        return task


def mteb_package() -> Any:
    """The package.

    Raises:
        L2VError: it is not installed.
    """
    for package in ("mteb", "sentence_transformers"):  # mteb imports the latter at an evaluation
        if importlib.util.find_spec(package) is None:
            raise L2VError(f"evaluation: this suite needs the package {package}; `pip install 'l2v[mteb]'`")
    import mteb

    logging.getLogger("mteb").setLevel(logging.ERROR)
    return mteb


def _leaves(task: Any) -> list[Any]:
    """The tasks that an aggregated one (CQADupstack) is made of; else itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


def result_cache(kept: Kept) -> Any:
    """mteb's cache of results, in ``kept.folder``."""
    from mteb.cache import ResultCache

    return ResultCache(kept.folder)


def known_result(task: Any, kept: Kept) -> Any:
    """The result that is kept of a task on the same encoder and data; None where there is none."""
    file = result_cache(kept).get_task_result_path(task.metadata.name, kept.encoder, kept.fingerprint)
    if not file.exists():
        return None
    from mteb.results import TaskResult

    try:
        result = TaskResult.from_disk(file)
    except (ValueError, KeyError):  # cut off while it was written
        return None
    same = result.dataset_revision == task.metadata.revision
    return result if same and not result.get_missing_evaluations(task) else None


def wrapped(encoder: Encoder, kept: Kept, instruction: Callable[[Any], str | None], batch_size: int, show: bool) -> Any:
    """The encoder as mteb takes a model; ``instruction`` maps a task's metadata to its instruction."""
    from l2v.evaluation.mteb_model import MtebEncoder

    return MtebEncoder(
        encoder,
        name=kept.encoder,
        revision=kept.fingerprint,
        instruction=instruction,
        batch_size=batch_size,
        show=show,
    )


def load(task: Any) -> None:
    """Load a task's data, unless they are.

    Raises:
        L2VError: they cannot be.
    """
    if task.data_loaded:
        return
    try:
        task.load_data()
    except Exception as error:  # of datasets, huggingface_hub or mteb, which have many
        place = task.metadata.dataset["path"]
        raise L2VError(f"{task.metadata.name}: its data {place} cannot be loaded ({first_line(error)})") from error


def texts_of(task: Any) -> Iterator[str]:
    """The texts of a loaded task's evaluated splits: of retrieval the queries and the documents with their titles."""
    yield from _texts_in(task.dataset, set(task.metadata.eval_splits))


def _texts_in(node: Any, splits: set[str]) -> Iterator[str]:
    if isinstance(node, Mapping):
        of_splits = splits & node.keys()
        for key, part in node.items():
            if key not in _JUDGEMENTS and (key in of_splits or not of_splits):
                yield from _texts_in(part, splits)
    elif hasattr(node, "column_names"):
        columns = [name for name in node.column_names if not name.startswith("label") and name not in _NO_TEXT]
        for row in node.select_columns(columns):
            if {"title", "text"} <= row.keys():
                row = {"text": f"{row['title'] or ''} {row['text']}".strip()}
            yield from _strings(list(row.values()))


_JUDGEMENTS = {"relevant_docs", "top_ranked"}
_NO_TEXT = {"id", "_id", "lang"}


def _strings(value: Any) -> Iterator[str]:
    """The strings in a row, which may be in lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def run_task(task: Any, model: Any, cache: Any) -> Any:
    """A task's result, which is kept; one line is said."""
    import mteb

    begin = time.monotonic()
    load(task)
    with warnings.catch_warnings(), _no_bars():
        warnings.simplefilter("ignore")
        found = mteb.evaluate(
            model,
            task,
            cache=cache,
            overwrite_strategy="always",
            encode_kwargs={"batch_size": model.batch_size, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
    result = found.task_results[0]
    say(f"{task.metadata.name}: {result.get_score():.4f} ({time.monotonic() - begin:.0f} s)")
    return result


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of datasets, which mteb leaves on for its own preparations."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def _hub_answers() -> bool:
    """Whether the hub can be reached."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10, follow_redirects=True).raise_for_status()
    except Exception:  # offline mode, or of the HTTP library, which huggingface_hub has changed before
        return False
    return True


def _in_hub_cache(path: str) -> bool:
    """Whether a data set was downloaded before, by huggingface_hub or by datasets."""
    import datasets
    from huggingface_hub import constants

    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    prepared = Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___")
    return downloaded.is_dir() or prepared.is_dir()


def _average(label: str, scores: dict[str, float]) -> dict[str, Any]:
    return entry(label, f"{len(scores)} task{'s' * (len(scores) > 1)}", sum(scores.values()) / len(scores), scores)
