"""The scores of ``evaluation=quick`` of several runs as a table, and as ``results.json``.

python experiments/quick/table.py runs/causal runs/bidirectional runs/mntp runs/simcse
python experiments/quick/table.py runs/start runs/distillation --results experiments/distillation/results.json
"""

import argparse
import sys
from pathlib import Path

from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json


def main(folders: list[Path], results_file: Path) -> None:
    """Print Markdown, and write the numbers with those of the contamination check."""
    results = {}
    for folder in folders:
        file = folder / "evaluation" / "quick.json"
        if not file.exists():
            raise L2VError(f"{folder}: no evaluation/quick.json; run evaluate.py evaluation=quick on it first")
        if folder.name in results:
            raise L2VError(f"{folder}: another folder is called {folder.name}, too; rows are named by it")
        suite, check = read_json(file), folder / "contamination" / "quick.json"
        results[folder.name] = {
            "seconds": suite["seconds"],
            "scores": {score["label"]: [score["metric"], score["value"]] for score in suite["scores"].values()},
            "contamination": {
                task["label"]: {key: task[key] for key in ("texts", "too_short", "texts_found", "grams", "grams_found")}
                for task in (read_json(check)["tasks"].values() if check.exists() else [])
            },
        }
    write_json(results_file, results)
    tasks = next(iter(results.values()))["scores"]
    print("| | " + " | ".join(f"{task} ({metric})" for task, (metric, _) in tasks.items()) + " | mean |")
    print("|---" + "|--:" * (len(tasks) + 1) + "|")
    for name, result in results.items():
        values = [value for _, value in result["scores"].values()]
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in (*values, sum(values) / len(values))) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    given = parser.parse_args()
    try:
        main(given.folders, given.results)
    except L2VError as error:
        sys.exit(f"error: {error}")
