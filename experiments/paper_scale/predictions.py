"""What a paired bootstrap is made of, a few numbers a text, from the predictions that evaluation=quick_whole keeps.

    python experiments/paper_scale/predictions.py <folder of data> <out.npz> runs/paper_scale/uni ...

The cosine of each pair of STSBenchmark and SICK-R, in the files' order, beside the human scores; nDCG@10 of each of
SciFact's claims, in the order of their ids. Arrays are named <task>/<run>.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SICK = ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt")


def human_scores(data: Path) -> dict[str, list[float]]:
    with open(data / "stsbenchmark" / "sts-test.csv", encoding="utf-8") as file:
        scores = {"STSBenchmark": [float(row[4]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]}
    scores["SICK-R"] = []
    for name in SICK:
        with open(data / "sick2014" / name, encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            scores["SICK-R"] += [float(row["relatedness_score"]) for row in rows]
    return scores


def gains(found: dict[str, dict[str, float]], data: Path) -> NDArray[np.float64]:
    """nDCG@10 of each judged claim."""
    judged: dict[str, set[str]] = {}
    with open(data / "scifact" / "qrels.test.tsv", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                judged.setdefault(row["query-id"], set()).add(row["corpus-id"])
    discounts = 1 / np.log2(np.arange(2, 12))
    values = []
    for query, relevant in sorted(judged.items()):
        best = sorted(found[query], key=lambda document: -found[query][document])[:10]
        hits = np.array([document in relevant for document in best])
        values.append(float(hits @ discounts[: len(hits)] / discounts[: len(relevant)].sum()))
    return np.array(values)


def main(data: Path, out: Path, runs: list[Path]) -> None:
    arrays = {f"{task}/human": np.array(scores) for task, scores in human_scores(data).items()}
    for run in runs:
        name = run.as_posix().partition("paper_scale/")[2] or run.name
        for task in ("STSBenchmark", "SICK-R", "SciFact"):
            for file in run.glob(f"evaluation/mteb/predictions/*/{task}_predictions.json"):
                found = json.loads(file.read_text())["default"]["test"]
                arrays[f"{task}/{name}"] = (
                    gains(found, data) if task == "SciFact" else np.array(found["cosine_scores"], dtype=np.float32)
                )
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), list(map(Path, sys.argv[3:])))
