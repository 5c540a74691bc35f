"""The scores of ``evaluation=quick`` of several runs as a table, and as ``results.json`` beside this file.

python experiments/quick/table.py runs/causal runs/bidirectional runs/mntp runs/simcse
"""

import sys
from pathlib import Path

from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json


def main(folders: list[Path]) -> None:
    """Print Markdown, and write the numbers with those of the contamination check."""
    results = {}
    for folder in folders:
        file = folder / "evaluation" / "quick.json"
        if not file.exists():
            raise L2VError(f"{folder}: no evaluation/quick.json; run evaluate.py evaluation=quick on it first")
        suite, check = read_json(file), folder / "contamination" / "quick.json"
        results[folder.name] = {
            "seconds": suite["seconds"],
            "scores": {score["label"]: [score["metric"], score["value"]] for score in suite["scores"].values()},
            "contamination": {
                task["label"]: {key: task[key] for key in ("texts", "too_short", "texts_found", "grams", "grams_found")}
                for task in (read_json(check)["tasks"].values() if check.exists() else [])
            },
        }
    write_json(Path(__file__).with_name("results.json"), results)
    tasks = next(iter(results.values()))["scores"]
    print("| | " + " | ".join(f"{task} ({metric})" for task, (metric, _) in tasks.items()) + " | mean |")
    print("|---" + "|--:" * (len(tasks) + 1) + "|")
    for name, result in results.items():
        values = [value for _, value in result["scores"].values()]
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in (*values, sum(values) / len(values))) + " |")


if __name__ == "__main__":
    try:
        main([Path(argument) for argument in sys.argv[1:]])
    except L2VError as error:
        sys.exit(f"error: {error}")
