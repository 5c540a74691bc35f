"""The tables and the figure of run.sh's runs, seeds folded into mean and deviation, and results.json with all of them.

python experiments/sample_efficiency/results.py runs/sample-efficiency
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from l2v.report.plots import COLOUR, PLOT_SETTINGS

HERE = Path(__file__).parent
STARTS = {"uni": "Uni", "bi-mntp": "Bi + MNTP", "bi-mntp-simcse": "Bi + MNTP + SimCSE"}
METRICS = {"sts": "STS-B dev", "mrr": "held-out MRR", "accuracy": "held-out accuracy"}
Results = dict[str, dict[str, Any]]


def collect(folder: Path) -> Results:
    """start -> seed-<n> -> seconds, versions, and the scores of each step that was validated."""
    results: Results = {}
    for start in STARTS:
        for run in sorted(folder.glob(f"seed-*/{start}")):
            record = json.loads((run / "run.json").read_text())
            if record["status"] != "finished":
                continue
            rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            scores = {
                str(row["step"]): {key: round(row[f"validation/{key}"], 4) for key in METRICS}
                for row in rows
                if "validation/sts" in row
            }
            known = {"seconds": record["seconds"], "versions": record["versions"], "scores": scores}
            results.setdefault(start, {})[run.parent.name] = known
    return results


def values(results: Results, start: str, step: str, metric: str) -> list[float]:
    return [one["scores"][step][metric] for one in results[start].values()]


def table(results: Results, metric: str) -> str:
    steps = list(next(iter(results["uni"].values()))["scores"])
    lines = [f"| {METRICS[metric]} | " + " | ".join(f"step {step}" for step in steps) + " |"]
    lines.append("|---|" + "--:|" * len(steps))
    for start in results:
        cells = []
        for step in steps:
            found = values(results, start, step, metric)
            spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}")
        lines.append(f"| {STARTS[start]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: Results, file: Path) -> None:
    """A plot a metric, a line a start: the mean over seeds, and from the least to the greatest in a lighter band."""
    with matplotlib.rc_context({**PLOT_SETTINGS, "figure.facecolor": COLOUR["page"]}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
            for number, start in enumerate(results):
                steps = list(next(iter(results[start].values()))["scores"])
                found = [values(results, start, step, metric) for step in steps]
                at = list(map(int, steps))
                axes.plot(at, list(map(statistics.mean, found)), "o-", color=f"C{number}", label=STARTS[start])
                axes.fill_between(at, list(map(min, found)), list(map(max, found)), color=f"C{number}", alpha=0.15)
            axes.set_title(label, loc="left")
            axes.set_xlabel("steps of supervised training")
        axes.legend(loc="lower right")
        figure.savefig(file, dpi=110)


def main(folder: Path) -> None:
    results = collect(folder)
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for metric in METRICS:
        print(f"\n{table(results, metric)}")
    draw(results, HERE / "curves.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
