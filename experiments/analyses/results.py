"""The numbers of the analyses of run folders, to results.json beside this file: python results.py runs/demo/*"""

import sys
from pathlib import Path
from typing import Any

from l2v.runs.files import read_json, write_json

SUITES = ("attention_states", "prefix_triples", "pooling", "geometry", "embedding_map")


def numbers(folder: Path) -> dict[str, Any]:
    """Details of each score by suite; of the states also the mean cosine of each layer."""
    found: dict[str, Any] = {}
    for suite in SUITES:
        file = folder / "evaluation" / f"{suite}.json"
        if not file.exists():
            continue
        scores = read_json(file)["scores"]
        details = {task: rounded(score["details"]) for task, score in scores.items() if score["details"]}
        for score in scores.values():
            if layers := score.get("plot", {}).get("layers"):
                details["by_layer"] = layers
        found[suite] = details
    return found


def rounded(details: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in details.items()}


write_json(Path(__file__).with_name("results.json"), {Path(run).name: numbers(Path(run)) for run in sys.argv[1:]})
