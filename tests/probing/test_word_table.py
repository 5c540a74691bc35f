"""The table of experiments/word_level."""

import importlib.util
from pathlib import Path

import pytest
from launch import ROOT

from l2v.errors import L2VError
from l2v.runs.files import write_json


def test_the_table_has_a_row_for_each_model_in_the_papers_order(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "experiments" / "word_level" / "table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(L2VError, match="no run of stage=word"):
        module.collect(tmp_path)
    for row, task, scores in (
        ("uni", "pos", {"paper_accuracy": 0.9}),
        ("bi", "ner", {"paper_accuracy": 0.97125, "f1": 0.8}),
    ):
        words = {"task": task, "part": "test", "shift": "same_token", "layer": 3}
        words |= {"states": {"model": "m"}, "scores": {"test": scores}}
        write_json(tmp_path / f"{row}-{task}" / "evaluation" / f"{task}.json", {"words": words})
        write_json(tmp_path / f"{row}-{task}" / "run.json", {"seed": 0, "step": 1500})
    assert module.table(module.collect(tmp_path)).splitlines()[2:] == [
        "| Uni | – | – | 90.00 |",
        "| Bi | – | 97.12 (80.00) | – |",
    ]
