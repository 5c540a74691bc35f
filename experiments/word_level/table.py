"""Word-level scores of folders of runs as a table, seeds folded into mean and deviation, and as a file of results.

python experiments/word_level/table.py runs/word_level                  writes results.json into the folder
python experiments/word_level/table.py runs/words-*/word_level --results experiments/word_level/results_paper_scale.json
"""

import argparse
import re
import statistics
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
    "bi_mntp_same": "Bi + MNTP, `stage.shift=same_token`",
    "bi_mntp_simcse_same": "Bi + MNTP + SimCSE, `stage.shift=same_token`",
}
TASKS = ("chunk", "ner", "pos")


def collect(folder: Path) -> list[dict[str, Any]]:
    """A result for each run ``<row>-<task>-seed-<seed>``: model, settings, and scores in percent.

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
                "row": re.sub(rf"-{words['task']}(-seed-\d+)?$", "", file.parents[1].name),
                "task": words["task"],
                "part": words["part"],
                "model": words["states"]["model"],
                "seed": record["seed"],
                "steps": record["step"],
                "shift": words["shift"],
                "layer": words["layer"],
                "paper_accuracy": round(100 * scores["paper_accuracy"], 2),
                "f1": round(100 * scores["f1"], 2) if "f1" in scores else None,
                "by_layer": {
                    probe["layer"]: round(100 * probe[words["part"]]["paper_accuracy"], 2)
                    for probe in words.get("by_layer", ())
                },
            }
        )
    if not results:
        raise L2VError(f"{folder}: no run of stage=word in it; expected folders such as uni-ner-seed-0")
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: token accuracy (the paper's number), with the F1 of spans in brackets."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        seeds = cells.setdefault((result["row"], result["task"]), [])
        if any(seed["seed"] == result["seed"] for seed in seeds):
            raise L2VError(f"{result['row']}-{result['task']}: two runs of seed {result['seed']}; give other folders")
        if any(seed[key] != result[key] for seed in seeds for key in ("part", "steps", "shift")):
            raise L2VError(f"{result['row']}-{result['task']}: seeds of other settings; give other folders")
        seeds.append(result)
    rows = sorted({row for row, _ in cells}, key=lambda row: (list(ROWS).index(row) if row in ROWS else len(ROWS), row))
    lines = ["| | Chunking | NER | POS |", "|---|--:|--:|--:|"]
    for row in rows:
        shown = [_cell(cells.get((row, task), [])) for task in TASKS]
        lines.append(f"| {ROWS.get(row, row)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def table_by_layer(results: list[dict[str, Any]]) -> str:
    """Markdown: token accuracy of a probe on each layer of the first run; empty where a run has one layer."""
    layers = list(results[0]["by_layer"])
    if len(layers) < 2:
        return ""
    names = {"chunk": "chunking", "ner": "NER", "pos": "POS"}
    lines = [f"| layer | | {' | '.join(map(str, layers))} |", f"|---|---|{'--:|' * len(layers)}"]
    for task in TASKS:
        for result in results:
            if result["task"] == task and list(result["by_layer"]) == layers:
                shown = " | ".join(f"{result['by_layer'][layer]:.2f}" for layer in layers)
                lines.append(f"| {names[task]} | {ROWS.get(result['row'], result['row'])} | {shown} |")
    return "\n".join(lines)


def _cell(seeds: list[dict[str, Any]]) -> str:
    if not seeds:
        return "–"
    f1 = [result["f1"] for result in seeds if result["f1"] is not None]
    return _folded([result["paper_accuracy"] for result in seeds]) + (f" ({_folded(f1)})" if f1 else "")


def _folded(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs/word_level")])
    parser.add_argument("--results", type=Path, help="the file to write; default: results.json in the first folder")
    given = parser.parse_args(arguments)
    try:
        found = [result for folder in given.folders for result in collect(folder)]
        shown = table(found)
    except L2VError as error:
        sys.exit(f"error: {error}")
    write_json(given.results or given.folders[0] / "results.json", found)
    print(shown)
    if by_layer := table_by_layer(found):
        print(f"\n{by_layer}")


if __name__ == "__main__":
    main()
