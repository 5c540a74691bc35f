"""Word-level scores of a folder of runs as a table, and as ``results.json`` in that folder.

python experiments/word_level/table.py runs/word_level
"""

import sys
from pathlib import Path
from typing import Any

from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json

ROWS = {
    "uni": "Uni",
    "bi": "Bi",
    "bi_mntp": "Bi + MNTP",
    "bi_simcse": "Bi + SimCSE",
    "bi_mntp_simcse": "Bi + MNTP + SimCSE",
}
TASKS = ("chunk", "ner", "pos")


def collect(folder: Path) -> list[dict[str, Any]]:
    """A result for each run ``<row>-<task>``: model, settings, and scores in percent.

    Raises:
        L2VError: the folder holds no word-level run.
    """
    results = []
    for file in sorted(folder.glob("*/evaluation/*.json")):
        words = read_json(file).get("words")
        if words is None:
            continue
        record, scores = read_json(file.parents[1] / "run.json"), words["scores"][words["part"]]
        results.append(
            {
                "row": file.parents[1].name.removesuffix(f"-{words['task']}"),
                "task": words["task"],
                "part": words["part"],
                "model": words["states"]["model"],
                "seed": record["seed"],
                "steps": record["step"],
                "shift": words["shift"],
                "layer": words["layer"],
                "paper_accuracy": round(100 * scores["paper_accuracy"], 2),
                "f1": round(100 * scores["f1"], 2) if "f1" in scores else None,
            }
        )
    if not results:
        raise L2VError(f"{folder}: no run of stage=word in it; expected folders such as uni-ner")
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: token accuracy (the paper's number), with the F1 of spans in brackets."""
    cells = {(result["row"], result["task"]): result for result in results}
    rows = sorted({row for row, _ in cells}, key=lambda row: (list(ROWS).index(row) if row in ROWS else len(ROWS), row))
    lines = ["| | Chunking | NER | POS |", "|---|--:|--:|--:|"]
    for row in rows:
        shown = [_cell(cells.get((row, task))) for task in TASKS]
        lines.append(f"| {ROWS.get(row, row)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "–"
    f1 = "" if result["f1"] is None else f" ({result['f1']:.2f})"
    return f"{result['paper_accuracy']:.2f}{f1}"


if __name__ == "__main__":
    try:
        found = collect(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/word_level"))
    except L2VError as error:
        sys.exit(f"error: {error}")
    write_json(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/word_level") / "results.json", found)
    print(table(found))
