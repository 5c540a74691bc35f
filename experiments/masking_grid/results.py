"""Scores of every point as results.json: ``python experiments/masking_grid/results.py runs/masking_grid``."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def point(scores: Path) -> dict[str, Any]:
    run = scores.parents[1]
    mntp = OmegaConf.load(run.parent / "mntp" / "config.yaml")
    with open(run / "metrics.csv", encoding="utf-8") as file:
        losses = [row["validation/loss"] for row in csv.DictReader(file) if row.get("validation/loss")]
    entries = json.loads(scores.read_text())["scores"].values()
    return {
        "strategy": mntp.stage.masking_strategy,
        "probability": mntp.stage.masking_probability,
        "seed": mntp.seed,
        "stage": run.name,
        **{entry["label"]: entry["value"] for entry in entries},
        "held_out_loss": float(losses[-1]),
    }


if __name__ == "__main__":
    found = [point(file) for file in sorted(Path(sys.argv[1]).glob("*/*/evaluation/sts_dev.json"))]
    (Path(__file__).parent / "results.json").write_text(json.dumps(found, indent=1) + "\n")
