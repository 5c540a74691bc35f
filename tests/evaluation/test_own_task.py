"""A task of a user's own: one Python file outside of l2v, named by its path in a config."""

import json
import sys
from pathlib import Path

import pytest
from launch import Tiny, composed, script

TASK = '''
from dataclasses import dataclass

from l2v.evaluation import Task


@dataclass(frozen=True)
class Closeness(Task):
    """Cosine of the first two texts."""

    texts: tuple[str, ...]
    label: str = "Closeness"
    metric: str = "cosine"

    def run(self, encoder, *, show=False):
        vectors = encoder.encode(list(self.texts))
        return {"cosine": float(encoder.similarity(vectors[:1], vectors[1:2])[0, 0]), "texts": float(len(self.texts))}

    def evaluated_texts(self):
        return self.texts
'''
SUITE = """
suite: own
tasks:
  close:
    _target_: my_tasks.Closeness
    texts: [a cat sat on the mat with the dog and the cat, the dog sat]
  far:
    _target_: my_tasks.Closeness
    texts: [a cat sat, a sentence]
    label: Distance
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the task, and a folder of configs with a suite of it."""
    (tmp_path / "my_tasks.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")  # processes of an evaluation import it too
    (tmp_path / "conf" / "evaluation").mkdir(parents=True)
    (tmp_path / "conf" / "evaluation" / "own.yaml").write_text(SUITE)
    yield tmp_path
    sys.modules.pop("my_tasks", None)


def own(package: Path) -> list[str]:
    return ["evaluation=own", f"hydra.searchpath=[file://{package / 'conf'}]"]


@pytest.mark.slow
def test_it_is_scored_in_a_suite_and_by_processes_that_share_the_tasks(package, tiny_model):
    scores = []
    for devices in (1, 2):
        out = package / f"out-{devices}"
        given = [f"encoder={tiny_model}", f"output={out}", f"devices={devices}"]
        script("evaluate").main(composed("evaluate", [*own(package), *given]))
        scores.append(json.loads((out / "evaluation" / "own.json").read_text())["scores"])
    assert scores[0] == scores[1]
    assert scores[0]["far"]["label"] == "Distance" and scores[0]["close"]["metric"] == "cosine"
    assert -1 <= scores[0]["close"]["value"] <= 1 and scores[0]["close"]["details"]["texts"] == 2


def test_its_texts_are_looked_for_in_training_data(package, tmp_path):
    (tmp_path / "train.txt").write_text("here a cat sat on the mat with the dog and the cat again\nother words\n")
    given = ["data=files", f"data.train.files={tmp_path / 'train.txt'}", f"output={tmp_path / 'out'}"]
    script("contamination").main(composed("contamination", [*own(package), *given, "n=8"]))
    found = json.loads((tmp_path / "out" / "contamination" / "own.json").read_text())["tasks"]
    assert found["close"]["texts_found"] == 1 and found["far"]["texts_found"] == 0


def test_it_is_a_curve_while_a_stage_trains(package, tmp_path, tiny_model, monkeypatch):
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    run = tiny.train("run", "simcse", *own(package), "stage.max_steps=2", "evaluate_every=1")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation/own/close" in row] == [0, 1, 2]
