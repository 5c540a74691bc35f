"""Shares of evaluation texts that stand in training data, on the page and in the terminal."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from l2v.report.markup import NONE, Html, cell, column_head, el, join, number_text, row_head, table, text_cell
from l2v.report.runs import Record

_COLUMNS = (
    ("texts", "looked for"),
    ("found", "share of texts"),
    ("n-grams found", "share of n-grams"),
)


def contamination_section(runs: list[Record]) -> Html | None:
    """A row for each run and task; None where nothing was looked for."""
    found = [(run, check) for run in runs for check in run.contamination.values()]
    if not found:
        return None
    head = [column_head("run"), column_head("task"), *(column_head(*names, number=True) for names in _COLUMNS)]
    rows = [
        [row_head(run.label, _about(check)), text_cell(task["label"]), *_cells(task)]
        for run, check in found
        for task in check["tasks"].values()
    ]
    note = (
        "A text is found if the training data hold n of its words in a row (all of them, where it has fewer than n). "
        "The training data of earlier runs, and of the model itself, are not looked at."
    )
    return join([table(head, rows), el("p", note, class_="note")])


def _about(check: dict[str, Any]) -> str:
    return f"{check['data']}, {check['training']['words']:,} words, n = {check['n']}"


def _cells(task: dict[str, Any]) -> list[Html]:
    looked_for = task["texts"] - task["too_short"]
    shares = [cell(_percent(task[key]), task[key]) for key in ("share", "grams_share")]
    return [cell(number_text(looked_for, 0), looked_for), *shares]


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.2%}"


def print_contamination(result: dict[str, Any]) -> None:
    """Print the shares as a table, and an example of each task in which something was found."""
    training = result["training"]
    made = Table(
        "task",
        title=f"{result['data']}: {training['texts']:,} texts, {training['words']:,} words",
        title_justify="left",
    )
    for name, note in _COLUMNS:
        made.add_column(f"{name}\n[dim]{note}", justify="right")
    console = Console()
    for task in result["tasks"].values():
        looked_for = f"{task['texts'] - task['too_short']:,}"
        looked_for += f"\n[dim]{task['too_short']:,} too short" if task["too_short"] else ""
        found = f"{task['texts_found']:,} ({_percent(task['share'])})"
        made.add_row(escape(task["label"]), looked_for, found, _percent(task["grams_share"]))
    console.print(made)
    for task in result["tasks"].values():
        for example in task["examples"][:1]:
            place = f"training text {example['training_text']:,}"
            console.print(
                f"{task['label']}, e.g. in {place}: {example['words']}", markup=False, highlight=False, soft_wrap=True
            )
