"""Scores of a benchmark's tasks, run beside run and the paper's columns beside them."""

import re
from typing import Any

from l2v.report.markup import NONE, Html, cell, column_head, difference, el, join, number_text, row_head, table
from l2v.report.paper import Row, category_of, row_of, table_of_tasks, task_numbers
from l2v.report.runs import Record, finite

_DECIMALS = 4


def benchmarks_section(runs: list[Record]) -> Html | None:
    """A folded table for each suite that averages over tasks; None where there is none."""
    suites = dict.fromkeys(suite for run in runs for suite in run.suites if tasks_of(run.suites[suite]))
    parts = [_suite(name, [run for run in runs if name in run.suites]) for name in suites]
    return join(parts) if parts else None


def tasks_of(suite: dict[str, Any]) -> dict[str, float]:
    """Scores by task, of the entries that are averages (``56 tasks``); empty where a suite has none."""
    scores: dict[str, float] = {}
    for score in suite["scores"].values():
        details = score.get("details")
        if re.fullmatch(r"\d+ tasks?", str(score.get("metric"))) and isinstance(details, dict):
            scores |= {task: value for task, value in details.items() if finite(value) is not None}
    return scores


def _suite(name: str, runs: list[Record]) -> Html:
    scores = {run.label: tasks_of(run.suites[name]) for run in runs}
    rows = {run.label: row_of(run, run.suites[name]) if name in ("mteb", "mteb_subset15") else None for run in runs}
    papers = {row: task_numbers(row) for row in dict.fromkeys(rows.values()) if row and task_numbers(row)}
    tasks = dict.fromkeys(task for found in scores.values() for task in found)
    head = [
        column_head("task"),
        column_head("category"),
        *(column_head(run.label, number=True) for run in runs),
        *(column_head("paper", f"{row.title} ({table_of_tasks(row)})", number=True) for row in papers),
    ]
    body = [
        [
            row_head(task),
            el("td", category_of(task) or NONE),
            *(_cell(scores[run.label].get(task), _paper(papers, rows[run.label], task)) for run in runs),
            *(_cell(numbers.get(task), None) for numbers in papers.values()),
        ]
        for task in tasks
    ]
    note = "The small numbers are the differences to the paper's." if papers else None
    summary = el("summary", el("b", name), f": {len(tasks)} tasks one by one")
    shown = [el("p", note, class_="note")] if note else []
    return el("details", summary, *shown, table(head, body), class_="tasks")


def _paper(papers: dict[Row, dict[str, float]], row: Row | None, task: str) -> float | None:
    return papers.get(row, {}).get(task) if row else None


def _cell(value: float | None, paper: float | None) -> Html:
    told = difference(value - paper, _DECIMALS) if value is not None and paper is not None else None
    return cell(join([number_text(value, _DECIMALS), told]), value)
