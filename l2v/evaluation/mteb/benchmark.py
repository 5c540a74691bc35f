"""MTEB with mteb's own task classes and scorers.

Scores are kept in mteb's own format under ``evaluation/mteb``, a file a task, as soon as they are there: an evaluation
that was stopped goes on with the task it was at. mteb is imported where it is used, so that configs are checked
without it.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from l2v.encoders.text_encoder import TextEncoder
from l2v.errors import L2VError, first_line
from l2v.evaluation.mteb.package import (
    hub_answers,
    in_hub_cache,
    known_result,
    load,
    mteb_encoder,
    mteb_package,
    result_cache,
    run_task,
    subtasks,
    texts_of,
)
from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task

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
Instructions = Literal["paper", "mteb", "none"]
_FOLDERS = {"mteb": "own", "none": "plain"}
"""Of scores, beside those with the paper's instructions."""


def store_with(store: ResultStore, instructions: Instructions) -> ResultStore:
    """Scores with other instructions are kept apart."""
    return store if instructions == "paper" else store.under(_FOLDERS[instructions])


@dataclass(frozen=True, kw_only=True)
class Benchmark(Task):
    """A benchmark of mteb: its average over tasks, and the average of each category (scores from 0 to 1).

    Tasks whose data are closed, which only mteb's leaderboard scores, are left out.

    Attributes:
        benchmark: mteb's name of it: ``MTEB(eng, v1)`` are the 56 tasks of the paper.
        tasks: some of its tasks by name; None: all.
        instructions: ``mteb``: each task's own; ``paper``: those of the paper where it has one, else mteb's; or none.
        folder: data sets as folders ``<owner>/<name>``, where they are not to come from the hub.
        batch_size: texts in a batch.
    """

    benchmark: str
    tasks: list[str] | None = None
    instructions: Instructions = "paper"
    folder: str | None = None
    batch_size: Annotated[int, Ge(1)] = 32

    label = "Average"
    metric = "main score"

    def check(self, store: ResultStore) -> None:
        """Raise an L2VError where mteb, a task or its data is missing. Loads nothing."""
        store = store_with(store, self.instructions)
        missing = [t for t in self._subtasks() if known_result(t, store) is None and not self._has_data(t)]
        if missing and not hub_answers():
            absent = [task for task in missing if not in_hub_cache(task.metadata.dataset["path"])]
            if absent:
                names = ", ".join(f"{task.metadata.name} ({task.metadata.dataset['path']})" for task in absent)
                place = self.folder or "<folder>"
                raise L2VError(
                    f"the hub cannot be reached, and there is no data of {len(absent)} task(s): {names}; put each into "
                    f"{place}/<owner>/<name>, as `hf download --repo-type dataset <owner>/<name> --local-dir "
                    f"{place}/<owner>/<name>` does, and set evaluation.folder={place}"
                )

    def parts(self, store: ResultStore) -> list["Benchmark"]:
        """A benchmark of one task for each that has no score yet."""
        store = store_with(store, self.instructions)
        return [
            replace(self, tasks=[task.metadata.name])
            for task in self._tasks()
            if any(known_result(part, store) is None for part in subtasks(task))
        ]

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """Score what has no score yet, each task into ``store``; the entries are those of :meth:`table`."""
        from l2v.evaluation.mteb.model import instruction_by

        store, cache = store_with(store, self.instructions), result_cache(store)
        model = mteb_encoder(encoder, store, instruction_by(self.instructions), self.batch_size, show)
        for task in self._tasks():
            parts = []
            for part in subtasks(task):
                result = known_result(part, store)
                parts.append(run_task(self._with_data(part), model, cache) if result is None else result)
            if task.is_aggregate:
                cache.save_to_cache(task.combine_task_results(parts), model.mteb_model_meta)
        return {}

    def table(self, name: str, store: ResultStore, scored: Entries) -> Entries:
        """The averages of the scores in ``store``. The details of the first are the scores of the tasks."""
        store = store_with(store, self.instructions)
        results = {}
        for task in self._tasks():
            parts = [known_result(part, store) for part in subtasks(task)]
            result = task.combine_task_results(parts) if task.is_aggregate else parts[0]
            results[task.metadata.name] = (task.metadata.type, round(float(result.get_score()), 6))
        return self._averages(name, results)

    def evaluated_texts(self) -> Iterator[str]:
        for _, texts in self.evaluated_texts_by_task("").values():
            yield from texts

    def evaluated_texts_by_task(self, name: str) -> dict[str, tuple[str, Iterable[str]]]:
        """Labels and texts of each of mteb's tasks, under its own name; they are loaded when they are asked for."""
        return {part.metadata.name: (part.metadata.name, self._texts(part)) for part in self._subtasks()}

    def _texts(self, task: Any) -> Iterator[str]:
        task = self._with_data(task)
        load(task)
        yield from texts_of(task)

    def _averages(self, name: str, results: dict[str, tuple[str, float]]) -> Entries:
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
            every = {task.metadata.name: task for task in mteb.get_benchmark(self.benchmark).tasks}
        except KeyError as error:
            raise L2VError(f"evaluation: benchmark={self.benchmark}: mteb has none ({first_line(error)})") from None
        known = {name: task for name, task in every.items() if task.metadata.is_public is not False}
        for task in self.tasks or ():
            if task in every and task not in known:
                raise L2VError(f"evaluation: {task}: its data are closed; only mteb's leaderboard scores it")
            if task not in known:
                raise L2VError(f"evaluation: {self.benchmark} has no task {task}; it has {', '.join(known)}")
        return [known[task] for task in self.tasks or known]

    def _subtasks(self) -> list[Any]:
        return [part for task in self._tasks() for part in subtasks(task)]

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


def _average(label: str, scores: dict[str, float]) -> dict[str, Any]:
    return entry(label, f"{len(scores)} task{'s' * (len(scores) > 1)}", sum(scores.values()) / len(scores), scores)
