"""Write results.json and print its table from the runs of run.sh: ``python results.py runs/sample-efficiency``."""

import json
import sys
from pathlib import Path

STARTS = {"uni": "Uni", "bi-mntp": "Bi + MNTP", "bi-mntp-simcse": "Bi + MNTP + SimCSE"}
METRICS = {"sts": "STS-B dev", "mrr": "held-out MRR", "accuracy": "held-out accuracy"}


def validations(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation/sts" in row]


def main(folder: Path) -> None:
    results = {}
    for name in STARTS:
        record = json.loads((folder / name / "run.json").read_text())
        scores = {
            row["step"]: {key: round(row[f"validation/{key}"], 4) for key in METRICS}
            for row in validations(folder / name)
        }
        results[name] = {"seconds": record["seconds"], "versions": record["versions"], "scores": scores}
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for metric, label in METRICS.items():
        steps = list(results["uni"]["scores"])
        print(f"\n| {label} | " + " | ".join(f"step {step}" for step in steps) + " |")
        print("|---|" + "--:|" * len(steps))
        for name, start in STARTS.items():
            values = (f"{results[name]['scores'][step][metric]:.3f}" for step in steps)
            print(f"| {start} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
