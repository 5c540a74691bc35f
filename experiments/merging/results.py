"""Scores of three seeds and of their merge as a table and results.json: ``python results.py runs/merging``."""

import json
import statistics
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SEEDS = ("seed-0", "seed-1", "seed-2")


def scores(folder: Path) -> dict[str, float]:
    suite = json.loads((folder / "evaluation" / "demo_sts.json").read_text())
    return {score["label"]: score["value"] for score in suite["scores"].values()}


def distance(one: Path, other: Path) -> float:
    """Of two encoders' weights, relative to the size of the first."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    apart = sum(torch.sum((a[name].double() - b[name].double()) ** 2).item() for name in a)
    return (apart / sum(torch.sum(weight.double() ** 2).item() for weight in a.values())) ** 0.5


def main(folder: Path) -> None:
    of_seeds = {name: scores(folder / name / "simcse") for name in SEEDS}
    merged = scores(folder / "average")
    apart = {
        "slerp": distance(folder / "average", folder / "slerp"),
        **{name: distance(folder / "average", folder / name / "simcse" / "encoder") for name in SEEDS},
    }
    results = {"scores": {**of_seeds, "average": merged}, "distance_to_average": apart}
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("| | " + " | ".join(merged) + " |\n|---" + "|--:" * len(merged) + "|")
    for name, found in results["scores"].items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |")
    values = {label: [found[label] for found in of_seeds.values()] for label in merged}
    spread = (f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in values.values())
    print("| mean of the seeds | " + " | ".join(spread) + " |")
    print({name: f"{value:.2e}" for name, value in apart.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
