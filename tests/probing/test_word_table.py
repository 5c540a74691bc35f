"""The table of experiments/word_level."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT

from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json


@pytest.fixture
def module() -> Any:
    spec = importlib.util.spec_from_file_location("table", ROOT / "experiments" / "word_level" / "table.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _write(folder: Path, row: str, task: str, seed: int, **scores: float) -> None:
    words = {"task": task, "part": "test", "shift": "same_token", "layer": 3}
    words |= {"states": {"model": "m"}, "scores": {"test": scores}}
    write_json(folder / f"{row}-{task}-seed-{seed}" / "evaluation" / f"{task}.json", {"words": words})
    write_json(folder / f"{row}-{task}-seed-{seed}" / "run.json", {"seed": seed, "step": 1500})


def test_the_table_has_a_row_for_each_model_in_the_papers_order(module: Any, tmp_path: Path) -> None:
    with pytest.raises(L2VError, match="no run of stage=word"):
        module.collect(tmp_path)
    _write(tmp_path, "uni", "pos", 0, paper_accuracy=0.9)
    _write(tmp_path, "bi", "ner", 0, paper_accuracy=0.97125, f1=0.8)
    assert module.table(module.collect(tmp_path)).splitlines()[2:] == [
        "| Uni | – | – | 90.00 |",
        "| Bi | – | 97.12 (80.00) | – |",
    ]


def test_folders_of_seeds_become_mean_and_deviation(
    module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "0", "bi", "ner", 0, paper_accuracy=0.9, f1=0.5)
    _write(tmp_path / "0", "bi", "pos", 0, paper_accuracy=0.8)
    _write(tmp_path / "1", "bi", "ner", 1, paper_accuracy=0.92, f1=0.6)
    module.main([str(tmp_path / "0"), str(tmp_path / "1"), "--results", str(tmp_path / "both.json")])
    assert capsys.readouterr().out.splitlines()[2:] == ["| Bi | – | 91.00 ± 1.41 (55.00 ± 7.07) | 80.00 |"]
    assert [(one["task"], one["seed"]) for one in read_json(tmp_path / "both.json")] == [
        ("ner", 0),
        ("pos", 0),
        ("ner", 1),
    ]


def test_several_layers_have_a_table_of_their_own(
    module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path, "bi", "ner", 0, paper_accuracy=0.92)
    file = tmp_path / "bi-ner-seed-0" / "evaluation" / "ner.json"
    found = read_json(file)
    found["words"]["by_layer"] = [
        {"layer": layer, "test": {"paper_accuracy": accuracy}} for layer, accuracy in ((6, 0.95), (30, 0.92))
    ]
    write_json(file, found)
    module.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| layer | | 6 | 30 |",
        "|---|---|--:|--:|",
        "| NER | Bi | 95.00 | 92.00 |",
    ]
    assert read_json(tmp_path / "results.json")[0]["by_layer"] == {"6": 95.0, "30": 92.0}
