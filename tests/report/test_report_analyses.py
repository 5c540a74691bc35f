"""The analyses of a report, from fabricated results."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from l2v.report import write_report
from l2v.runs.files import write_json


def entry(label: str, plot: dict[str, Any] | None, **details: float) -> dict[str, Any]:
    made = {"label": label, "metric": "m", "value": next(iter(details.values())), "details": details}
    return made | ({"plot": plot} if plot else {})


STATES = {
    "kind": "attention_states",
    "cosine": [[1.0, 1.0], [0.8, 0.7], [0.55, -0.1]],
    "positions": [0, 5],
    "length": 10,
    "layers": [1.0, 0.75, 0.2],
    "causal_layers": [],
}
TRIPLES = {"kind": "prefix_triples", "positive": [1.0, 0.9, 0.8], "negative": [1.0, 0.8, 0.85]}
POOLING = {
    "kind": "pooling",
    "task": "pooling",
    "poolings": [["mean", "mean"], ["last_token", "last token"]],
    "tasks": [
        {"label": "Lee", "metric": "Spearman", "values": {"mean": 0.51, "last_token": None}},
        {"label": "Wikipedia", "metric": "nDCG@10", "values": {"mean": 0.71, "last_token": -0.125}},
    ],
}
MAP = {
    "kind": "embedding_map",
    "method": "tsne",
    "labels": ["Apollo <11>", "Alchemy"],
    "label": [0, 1, 1],
    "points": [[0.0, 0.123456], [1.0, 1.0], [0.5, 0.5]],
}


def write(folder: Path, **suites: dict[str, Any]) -> Path:
    for suite, scores in suites.items():
        write_json(folder / "evaluation" / f"{suite}.json", {"suite": suite, "scores": scores})
    return folder


@pytest.fixture
def page(tmp_path: Path) -> str:
    analyses = {
        "attention_states": {"states": entry("States", STATES, last_layer=0.2, all_layers=0.475)},
        "prefix_triples": {
            "p": entry("Prefixes", TRIPLES, accuracy=0.5, positive=0.9, negative=0.8833, margin=0.0167, triples=3)
        },
        "pooling": {"pooling_mean": entry("Pooling: mean", POOLING, value=0.61)},
        "geometry": {"g": entry("Geometry", None, uniformity=-1.5, alignment=0.25, anisotropy=0.4)},
        "embedding_map": {"m": entry("Map of passages", MAP, purity=0.875, silhouette=0.25)},
    }
    folders = [write(tmp_path / "one", **analyses), write(tmp_path / "two", **analyses)]
    folders.append(write(tmp_path / "bare", demo={"lee": entry("Lee", None, spearman=0.5)}))
    return write_report(folders, tmp_path / "report.html").read_text()


def test_each_analysis_has_its_part_with_the_runs_side_by_side(page: str) -> None:
    section = page.partition("<h2>Analyses</h2>")[2].partition("</section>")[0]
    titles = re.findall(r"<h3>(.*?)</h3>", section)
    assert titles == ["States", "Prefixes: 3 triples", "Pooling", "Geometry", "Map of passages"]
    assert section.count("<figure>") == (1 + 2) + 2 + (1 + 2) + 2 + 2
    assert "of the last: one 0.20, two 0.20" in section and "from -0.10 to 1.00" in section
    assert "means: one +0.0167, two +0.0167" in section
    assert "one: mean 0.510, last token –; two:" in section  # a value that is none has no bar
    assert "one -1.50 and 0.25" in section and "one 0.400" in section
    assert "purity 0.88, silhouette 0.25" in section and "Apollo &lt;11&gt;" in section
    assert section.count(">bare<") == 0


def test_the_drawings_are_well_formed_and_follow_the_pages_colours(page: str) -> None:
    section = page.partition("<h2>Analyses</h2>")[2].partition("</section>")[0]
    drawings = re.findall(r"<svg.*?</svg>", section, re.DOTALL)
    assert len(drawings) == 12
    ids = []
    for drawing in drawings:
        spaced = drawing.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
        ids += [element.get("id") for element in ET.fromstring(spaced).iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert "var(--c0)" in section and "#2f6fbf" not in section
    assert "0.123456" not in section and section.count("<image") == 4  # a map and its scale, two runs


def test_a_page_without_analyses_has_no_section(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", demo={"lee": entry("Lee", {"kind": "unknown to this version"}, spearman=0.5)})
    assert "<h2>Analyses</h2>" not in write_report([folder], tmp_path / "report.html").read_text()
