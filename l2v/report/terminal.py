"""The scores as a table in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from l2v.report.tables import best_of, known_values, summary_rows


def print_scores(folders: Sequence[Path]) -> None:
    """Print the scores of run folders as a table, the best of each task in bold.

    A row is a run, or a task where there are more tasks than runs: the terminal is not that wide.
    """
    rows = summary_rows(folders)
    heads, columns = [], []
    for task, found in known_values(rows).items():
        scores = [row["scores"][task] for row in rows if task in row["scores"]]
        heads.append(f"{escape(scores[0]['label'])}\n[dim]{escape(scores[0]['metric'])}[/]")
        best = best_of(found, all(score["higher_is_better"] for score in scores)) if len(rows) > 1 else None
        values = [row["scores"].get(task, {}).get("value") for row in rows]
        columns.append([_cell(value, value is not None and value == best) for value in values])
    labels = [escape(row["label"]) for row in rows]
    if len(heads) > len(rows):
        table = Table("task", *labels)
        cells = list(zip([head.replace("\n", ", ") for head in heads], *zip(*columns, strict=True), strict=True))
    else:
        table = Table("model", *heads)
        cells = list(zip(labels, *columns, strict=True))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def _cell(value: float | None, is_best: bool) -> str:
    text = "-" if value is None else f"{value:.4f}"
    return f"[bold]{text}[/]" if is_best else text
