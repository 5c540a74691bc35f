"""The LLM2Vec paper (arXiv 2404.05961): its Tables 1, 2, 4, 5, 11 and 12 for the scores that compare with them."""

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from l2v.report.runs import Record, weights_of
from l2v.runs.lineage import Lineage

_SUITES = ("mteb", "mteb_subset15")
"""Suites whose tasks and data are the paper's; ``mteb_v2`` and samples of tasks are not."""
_STAGES = {"mntp": "MNTP", "simcse": "SimCSE"}
_PUBLISHED = re.compile(r"LLM2Vec-.+-mntp(-unsup-simcse|-supervised)?")
_PUBLISHED_STAGES = {None: ["mntp"], "-unsup-simcse": ["mntp", "simcse"], "-supervised": ["mntp", "supervised"]}


@dataclass(frozen=True)
class Row:
    """What a row of the paper's tables stands for."""

    model: str
    """As the paper calls it."""
    variant: str
    """Attention and stages: ``Bi + MNTP``."""
    supervised: bool
    pooling: str | None
    """None of word vectors."""

    @property
    def title(self) -> str:
        parts = [self.model, self.variant, "supervised" if self.supervised else None]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Number:
    """A score of the paper.

    Attributes:
        value: from 0 to 1; the paper prints it times 100.
        row: whose score it is.
        source: the table, or the tasks of a table whose mean it is.
    """

    value: float
    row: str
    source: str


def row_of(run: Record, suite: dict[str, Any]) -> Row | None:
    """The row whose model was made as the encoder of ``suite``; None where the paper has none, or it is not known."""
    lineage = weights_of(run, suite)
    if lineage is None or lineage.base_ratio or lineage.others or (run.lineage is None and "adapters" not in suite):
        return None
    model, stages = _model(run, lineage), _stages(lineage)
    if model is None or stages is None:
        return None
    supervised = stages[-1:] == ["supervised"]
    stages = stages[:-1] if supervised else stages
    if stages not in ([], ["mntp"], ["simcse"], ["mntp", "simcse"]):
        return None
    start = {"bidirectional": "Bi", "causal": "Uni"}.get(str(suite.get("attention")))
    if "Encoder" in _data()["table_4"].get(model, {}):
        start = "Encoder"
    if start is None:
        return None
    variant = " + ".join([start, *(_STAGES[stage] for stage in stages)])
    return Row(model, variant, supervised, suite.get("pooling"))


def number_for(run: Record, suite: dict[str, Any], name: str, score: dict[str, Any]) -> Number | None:
    """The paper's number for a score of ``evaluation/<name>.json``; None where it has none."""
    row = row_of(run, suite)
    if row is None:
        return None
    if score.get("metric") == "paper_accuracy":
        found = _word_number(run, suite, row)
    elif name in _SUITES and isinstance(score.get("details"), dict):
        found = _mteb_number(row, set(score["details"]))
    else:
        found = None
    return Number(round(found[0] / 100, 6), row.title, found[1]) if found else None


def task_numbers(row: Row) -> dict[str, float]:
    """Scores from 0 to 1 of the 56 MTEB tasks by name; empty where the paper prints averages only."""
    table = _task_table(row)
    return {task: round(value / 100, 6) for task, value in _tasks(table, row.model).items()} if table else {}


def table_of_tasks(row: Row) -> str | None:
    """The table that :func:`task_numbers` come from, as it is called."""
    table = _task_table(row)
    return _called(table) if table else None


def category_of(task: str) -> str | None:
    """The paper's category of an MTEB task, by mteb's name of it."""
    return next((name for name, tasks in _data()["categories"].items() if task in tasks), None)


def _word_number(run: Record, suite: dict[str, Any], row: Row) -> tuple[float, str] | None:
    """Token accuracy on the test part of CoNLL-2003 (Table 4)."""
    words, data = suite.get("words") or {}, (run.record.get("choices") or {}).get("data")
    values = _data()["table_4"].get(row.model, {}).get(row.variant)
    columns = _data()["columns"]["table_4"]
    fits = words.get("part") == "test" and words.get("task") in columns and data == "conll2003" and not row.supervised
    return (values[columns.index(words["task"])], _called("table_4")) if fits and values else None


def _mteb_number(row: Row, tasks: set[str]) -> tuple[float, str] | None:
    """The average over ``tasks``: as it is printed, else of the tasks as they are printed."""
    averages, poolings = "table_2" if row.supervised else "table_1", _data()["columns"]["table_5"]
    values = _data()[averages].get(row.model, {}).get(row.variant)
    groups = {**_data()["categories"], "Average": [task for group in _data()["categories"].values() for task in group]}
    group = next((name for name, members in groups.items() if tasks == set(members)), None)
    if group and values and row.pooling == ("weighted_mean" if row.variant == "Uni" else "mean"):
        return values[_data()["columns"][averages].index(group)], _called(averages)
    ablation = _data()["table_5"].get(row.model, {}).get(row.variant)
    if tasks == set(_data()["subset_15"]) and ablation and row.pooling in poolings and not row.supervised:
        return ablation[poolings.index(row.pooling)], _called("table_5")
    table = _task_table(row)
    printed = _tasks(table, row.model) if table else {}
    if not tasks or not tasks <= printed.keys():
        return None
    source = _called(str(table)) if len(tasks) == 1 else f"{_called(str(table))}, mean of {len(tasks)} tasks"
    return sum(printed[task] for task in tasks) / len(tasks), source


def _task_table(row: Row) -> str | None:
    """Tables 11 and 12 have one variant each."""
    wanted = {("Bi + MNTP + SimCSE", False): "table_11", ("Bi + MNTP", True): "table_12"}
    table = wanted.get((row.variant, row.supervised))
    return table if table and row.pooling == "mean" and row.model in _data()["columns"][table] else None


def _tasks(table: str, model: str) -> dict[str, float]:
    column = _data()["columns"][table].index(model)
    return {task: values[column] for task, values in _data()[table].items()}


def _called(table: str) -> str:
    return table.replace("table_", "Table ")


def _model(run: Record, lineage: Lineage) -> str | None:
    """By the name of the original decoder, or by ``model=`` where that is a folder of another name."""
    base = lineage.origin or next((step["base"] for step in lineage.history if "base" in step), lineage.base)
    name = Path(base).name.lower()
    for model, names in _data()["models"].items():
        published = names["published"]
        if name == names["name"].lower() or (published and name.startswith(published.lower())):
            return str(model)
    choice = (run.record.get("choices") or {}).get("model")
    is_folder = base.startswith((".", "/", "~"))
    return next((m for m, names in _data()["models"].items() if is_folder and choice == names["config"]), None)


def _stages(lineage: Lineage) -> list[str] | None:
    """Stages that made the weights, oldest first; None where one is not of the paper."""
    base = _published_stages(lineage.base) or []
    tops = [record for record in (*lineage.merged, lineage.initial, lineage.adapter) if record]
    names = [str(step.get("stage")) for step in lineage.history] + [record.stage for record in tops]
    stages = base + [(_published_stages(name) or [name])[-1] for name in names]
    return stages if set(stages) <= {*_STAGES, "supervised"} else None


def _published_stages(name: str) -> list[str] | None:
    match = _PUBLISHED.fullmatch(Path(name).name)
    return _PUBLISHED_STAGES[match[1]] if match else None


@functools.cache
def _data() -> dict[str, Any]:
    """Facts of the paper, in percent."""
    return json.loads(resources.files("l2v.report").joinpath("paper.json").read_text(encoding="utf-8"))
