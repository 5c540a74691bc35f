"""Fabricated run folders, small but shaped like real ones, and what a page that is made of them holds."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from l2v.report import write_report
from l2v.runs.files import write_json, write_text
from l2v.runs.lineage import AdapterRecord, Lineage

BASE = Lineage(base="package:models/smollm2.gguf", base_hash="sha256:0123456789abcdef")
MNTP = AdapterRecord("mntp", "adapter", "aaaabbbbccccdddd")
SIMCSE = AdapterRecord("simcse", "adapter", "sha256:eeeeffff00001111")


def score(label: str, metric: str, value: float | None, higher_is_better: bool = True) -> dict[str, Any]:
    return {"label": label, "metric": metric, "value": value, "higher_is_better": higher_is_better, "details": {"n": 5}}


def write_suite(folder: Path, suite: str = "demo", **scores: dict[str, Any]) -> None:
    about = {"encoder": str(folder), "attention": "bidirectional", "pooling": "mean", "seconds": 41.25}
    write_json(folder / "evaluation" / f"{suite}.json", {"suite": suite, **about, "scores": scores})


def evaluated(folder: Path, lee: float, wikipedia: float, perplexity: float | None) -> Path:
    write_suite(
        folder,
        lee=score("Lee news similarity", "Spearman", lee),
        wikipedia=score("Wikipedia retrieval", "nDCG@10", wikipedia),
        perplexity=score("Masked-token perplexity", "perplexity", perplexity, higher_is_better=False),
    )
    return folder


def trained(folder: Path, stage: str, lineage: Lineage, *, learning_rate: float, steps: int = 60) -> None:
    record = {
        "name": f"demo/{stage}",
        "stage": stage,
        "status": "finished",
        "seed": 7,
        "config_hash": "sha256:c0ffee00c0ffee00",
        "created": "2026-01-02T12:00:00+00:00",
        "finished": "2026-01-02T12:34:56+00:00",
        "seconds": 812.5,
        "step": steps,
        "choices": {"model": "smollm2-135m-embedded", "stage": stage},
        "versions": {"l2v": "9.8.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"cpu_count": 16},
        "proof": {"backward_change": 0.31},
    }
    write_json(folder / "run.json", record)
    config = f"seed: 7\nstage:\n  name: {stage}\n  learning_rate: {learning_rate}\ndata:\n  layers: [1, 2]\n"
    write_text(folder / "config.yaml", config)
    lineage.write(folder / "lineage.json")
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        speed = {"train/tokens_per_second": 400.0 + step % 3}
        rows.append({"step": step, "train/loss": 2 + math.exp(-step / 20), "learning_rate": learning_rate, **speed})
        if step % 20 == 0:
            rows.append({"step": step, "validation/loss": 2.5, "validation/accuracy": step / 100})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def demo_runs(tmp_path: Path) -> list[Path]:
    """Two evaluations without training, then two stages."""
    root = tmp_path / "runs" / "demo"
    folders = [
        evaluated(root / "causal", 0.4717, 0.5310, None),
        evaluated(root / "bidirectional", 0.3322, 0.4127, 812.4),
        evaluated(root / "mntp", 0.5322, 0.4027, 27.31),
        evaluated(root / "simcse", 0.6874, 0.4127, 64.02),
    ]
    trained(folders[2], "mntp", Lineage(BASE.base, BASE.base_hash, adapter=MNTP), learning_rate=0.001)
    merged = Lineage(BASE.base, BASE.base_hash, merged=[MNTP], adapter=SIMCSE)
    trained(folders[3], "simcse", merged, learning_rate=0.0003)
    return folders


def report(folders: list[Path], tmp_path: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    output = write_report(folders, tmp_path / "out" / "report.html", **options)
    return output.read_text(encoding="utf-8"), json.loads((tmp_path / "out" / "runs.json").read_text(encoding="utf-8"))


class Page(HTMLParser):
    """What a page holds: its text, ids and references, and whether its elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "wbr"):
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for key, value in attrs if key == "id"]
        self.references += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href")]
