"""The scores as a table in the terminal."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from l2v.report.ablation import folded, folded_as, seeds_of
from l2v.report.runs import read_runs
from l2v.report.tables import best_of, known_values, summary


def print_scores(folders: Sequence[Path]) -> None:
    """Print the scores of run folders as a table, the best of each task in bold.

    Runs that differ in their seeds only are one: mean and standard deviation. A row is a run, or a task where there are
    more tasks than runs: the terminal is not that wide.
    """
    runs = read_runs(folders)
    rows = {row["label"]: row["scores"] for row in summary(runs)}
    groups = seeds_of(runs)
    heads, columns = [], []
    for task in known_values([{"scores": scores} for scores in rows.values()]):
        scores = [scores[task] for scores in rows.values() if task in scores]
        heads.append(f"{escape(scores[0]['label'])}\n[dim]{escape(scores[0]['metric'])}[/]")
        found = [_folded([rows[label].get(task, {}).get("value") for label in group]) for group in groups]
        means = [one["mean"] for one in found if one is not None and one["mean"] is not None]
        best = best_of(means, all(score["higher_is_better"] for score in scores)) if len(groups) > 1 else None
        columns.append([_cell(one, best) for one in found])
    labels = [escape(_label(group, folded_as(group, runs))) for group in groups]
    if len(heads) > len(groups):
        table = Table("task", *labels)
        cells = list(zip([head.replace("\n", ", ") for head in heads], *zip(*columns, strict=True), strict=True))
    else:
        table = Table("model", *heads)
        cells = list(zip(labels, *columns, strict=True))
    for number, column in enumerate(table.columns):
        column.overflow = "fold"
        column.justify = "right" if number else "left"
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def _folded(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    fewer = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return {**folded(known), "fewer": fewer} if known else None


def _label(group: Sequence[str], kind: str) -> str:
    """Of runs that differ in their seeds: what is left of their labels without them."""
    if len(group) == 1:
        return group[0]
    names = {re.sub(r"(?<![a-z])[_-]?seed-?\d+", "", label).strip("/").replace("//", "/") for label in group}
    return f"{names.pop() if len(names) == 1 else group[0]} ({len(group)} {kind})"


def _cell(score: dict[str, Any] | None, best: float | None) -> str:
    if score is None:
        return "-"
    text = f"{score['mean']:.4f}" + (f" ± {score['deviation']:.4f}" if score["deviation"] is not None else "")
    return (f"[bold]{text}[/]" if score["mean"] == best else text) + score["fewer"]
