"""Table 1 in small, and a paired bootstrap for each claim, from the runs of run.sh; written to results.json.

    python experiments/paper_scale/results.py <folder of runs> <predictions.npz> [--results <another file>]

The table has means and standard deviations over the seeds that are there. A resample of a claim "A above B" draws
texts, and of each side seeds, with replacement; a score is the mean over the drawn seeds.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

ROWS = {
    "uni": ("Uni", "uni"),
    "uni_simcse": ("Uni + SimCSE", "uni_simcse/seed-*/simcse"),
    "bi": ("Bi", "bi"),
    "bi_mntp": ("Bi + MNTP", "bi_mntp_simcse/seed-*/mntp"),
    "bi_simcse": ("Bi + SimCSE", "bi_simcse/seed-*/simcse"),
    "bi_simcse_cpu": ("Bi + SimCSE, on a CPU", "bi_simcse_cpu/seed-*/simcse"),
    "bi_mntp_simcse": ("Bi + MNTP + SimCSE", "bi_mntp_simcse/seed-*/simcse"),
    "minilm": ("all-MiniLM-L6-v2", "minilm"),
}
TASKS = {
    "STSBenchmark": "STSBenchmark",
    "SICK-R": "SICK-R",
    "SciFact": "SciFact",
    "Banking77Classification": "Banking77",
    "StackOverflowTitles": "StackOverflow",
    "Lee": "Lee",
}
CLAIMS = [
    ("uni", "bi"),
    ("bi_mntp", "bi"),
    ("bi_mntp", "uni"),
    ("uni_simcse", "uni"),
    ("bi_simcse", "bi"),
    ("bi_simcse", "uni_simcse"),
    ("bi_mntp_simcse", "bi_mntp"),
    ("bi_mntp_simcse", "bi_simcse"),
    ("bi_mntp_simcse", "uni_simcse"),
    ("bi_mntp_simcse", "bi_simcse_cpu"),
    ("bi_simcse_cpu", "bi_simcse"),
]
RESAMPLES = 1000


def scores_of(run: Path) -> dict[str, float]:
    """By task; of a run whose evaluation was stopped, what mteb has written."""
    found: dict[str, float] = {}
    for file in run.glob("evaluation/mteb/results/*/*/*.json"):
        if file.stem in TASKS:
            score = json.loads(file.read_text())["scores"]["test"][0]["main_score"]
            if found.setdefault(file.stem, score) != score:
                raise SystemExit(f"{run}: two scores of {file.stem}; remove that of another sample or encoder")
    suite = run / "evaluation" / "quick_whole.json"
    if suite.exists():
        found["Lee"] = json.loads(suite.read_text())["scores"]["lee"]["value"]
    return found


def bootstrap(arrays: Any, a: list[str], b: list[str], task: str) -> dict[str, float] | None:
    """How much A is above B: the difference, its 95% interval, and the share of resamples in which it is above 0."""
    sides = [[arrays[f"{task}/{run}"] for run in runs if f"{task}/{run}" in arrays] for runs in (a, b)]
    if not all(sides):
        return None
    human = arrays.get(f"{task}/human")

    def score(values: NDArray[Any], drawn: NDArray[np.int64]) -> float:
        if human is None:
            return float(values[drawn].mean())
        return float(np.corrcoef(rankdata(values[drawn]), rankdata(human[drawn]))[0, 1])

    draw = np.random.default_rng(0)
    count = len(sides[0][0])
    means = [statistics.mean(score(values, np.arange(count)) for values in side) for side in sides]
    differences = []
    for _ in range(RESAMPLES):
        drawn = draw.integers(count, size=count)
        seeds = [draw.integers(len(side), size=len(side)) for side in sides]
        found = [
            statistics.mean(score(side[seed], drawn) for seed in chosen)
            for side, chosen in zip(sides, seeds, strict=True)
        ]
        differences.append(found[0] - found[1])
    low, high = np.quantile(differences, [0.025, 0.975])
    return {
        "difference": round(means[0] - means[1], 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "share": round(float(np.mean(np.array(differences) > 0)), 3),
    }


def main(folder: Path, predictions: Path, file: Path) -> None:
    runs = {row: sorted(folder.glob(pattern)) for row, (_, pattern) in ROWS.items()}
    table = {row: {run.relative_to(folder).as_posix(): scores_of(run) for run in found} for row, found in runs.items()}
    arrays = np.load(predictions)
    claims = []
    for a, b in CLAIMS:
        sides = [[run.relative_to(folder).as_posix() for run in runs[row]] for row in (a, b)]
        for task in ("STSBenchmark", "SICK-R", "SciFact"):
            if found := bootstrap(arrays, *sides, task):
                known = [sum(f"{task}/{run}" in arrays for run in side) for side in sides]
                claims.append({"above": a, "below": b, "task": task, "seeds": known, **found})
    results = {"scores": table, "claims": claims}
    file.write_text(json.dumps(results, indent=2) + "\n")
    print("| | " + " | ".join(TASKS.values()) + " |\n|---" + "|--:" * len(TASKS) + "|")
    for row, found in table.items():
        cells = []
        for task in TASKS:
            values = [scores[task] for scores in found.values() if task in scores]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
        print(f"| {ROWS[row][0]} | " + " | ".join(cells) + " |")
    print()
    for claim in claims:
        print("{above} above {below}, {task}: {difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**claim))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    given = parser.parse_args()
    main(given.folder, given.predictions, given.results)
