"""Scores after MNTP by llm2vec and by l2v as a table and results.json: ``python results.py runs/llm2vec``."""

import json
import statistics
import sys
from pathlib import Path


def scores(folder: Path) -> dict[str, float]:
    found = {}
    for suite in ("demo", "sts_languages"):
        entries = json.loads((folder / "evaluation" / f"{suite}.json").read_text())["scores"]
        found |= {entry["label"]: entry["value"] for entry in entries.values()}
    return found


def main(folder: Path) -> None:
    results = {
        side: {f"seed-{seed}": scores(folder / f"{key}-{seed}") for seed in range(3)}
        for side, key in (("llm2vec", "theirs"), ("l2v", "ours"))
    }
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    labels = list(results["l2v"]["seed-0"])
    print("| | " + " | ".join(labels) + " |\n|---" + "|--:" * len(labels) + "|")
    for side, seeds in results.items():
        for name, found in seeds.items():
            print(f"| {side}, {name} | " + " | ".join(f"{found[label]:.3f}" for label in labels) + " |")
        means = [statistics.mean(found[label] for found in seeds.values()) for label in labels]
        print(f"| {side}, mean | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
