"""The scores as a table in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from l2v.report.tables import best_of, known_values, summary_rows


def print_scores(folders: Sequence[Path]) -> None:
    """Print the scores of run folders as a table, the best of each column in bold."""
    rows = summary_rows(folders)
    best: dict[str, float | None] = {}
    table = Table("model")
    for task, found in known_values(rows).items():
        scores = [row["scores"][task] for row in rows if task in row["scores"]]
        table.add_column(f"{scores[0]['label']}\n[dim]{scores[0]['metric']}", justify="right")
        best[task] = best_of(found, all(score["higher_is_better"] for score in scores))
    for row in rows:
        values = {task: row["scores"].get(task, {}).get("value") for task in best}
        cells = ["-" if value is None else f"{value:.4f}" for value in values.values()]
        mark = [len(rows) > 1 and value is not None and value == best[task] for task, value in values.items()]
        table.add_row(
            escape(row["label"]), *(f"[bold]{cell}[/]" if b else cell for cell, b in zip(cells, mark, strict=True))
        )
    Console().print(table)
