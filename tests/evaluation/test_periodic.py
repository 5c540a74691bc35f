"""A suite while a stage trains: curves of the scores, and a training that goes on as it would have."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import Tiny, composed, metrics
from lightning.pytorch.callbacks import Callback
from quick_folder import write_quick_folder

from l2v import config as configs
from l2v.errors import L2VError
from l2v.evaluation.suite import evaluate
from l2v.evaluation.task import Task
from l2v.models.settings import EncoderSettings
from l2v.runs.run import Run

SUITE = [f"~evaluation.tasks.{name}" for name in ("scifact", "banking77", "stackoverflow")]
KEY = "evaluation/quick/stsbenchmark"


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    """Overrides."""
    data = write_quick_folder(tmp_path / "data")
    return ["evaluate_every=2", "evaluation=quick", f"evaluation.folder={data}", *SUITE]


def curve(run: Path, key: str = KEY) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[key]) for row in rows if key in row]


def test_scores_are_curves_and_the_last_is_that_of_the_encoder(
    tiny: Tiny, quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.train("run", "simcse", "stage.max_steps=5", "stage.learning_rate=1e-2", *quick)
    steps, values = zip(*curve(run), strict=True)
    assert steps == (0, 2, 4, 5) and len(set(values)) > 1
    assert [step for step, _ in curve(run, "evaluation/quick/sickr")] == list(steps)
    suite = configs.plain(composed("train", quick))["evaluation"]
    tasks = configs.build(suite["tasks"], "evaluation.tasks")
    result = evaluate(EncoderSettings(str(run)), tasks, suite="quick", folder=run, show=False)
    assert values[-1] == pytest.approx(result["scores"]["stsbenchmark"]["value"], abs=1e-5)
    assert "step 5: stsbenchmark" in capsys.readouterr().err
    assert not list(run.rglob("now"))


@dataclass(frozen=True)
class Noisy(Task):
    """Draws from every generator."""

    label = metric = "noise"

    def run(self, encoder: Any, *, show: bool = False) -> dict[str, float]:
        return {"noise": float(torch.rand(1)) + np.random.rand() + random.random()}


class Draws(Callback):
    """Numbers that code of one's own may draw at a step, from generators that l2v does not key by the step."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.found.append((np.random.rand(), random.random()))


def test_training_goes_on_as_without_evaluations(tiny: Tiny, quick: list[str]) -> None:
    draws = Draws(), Draws()
    plain = tiny.train("plain", "simcse", "stage.max_steps=4", callbacks=[draws[0]])
    noisy = f"+evaluation.tasks.noisy._target_={__name__}.Noisy"
    watched = tiny.train("watched", "simcse", "stage.max_steps=4", *quick, noisy, callbacks=[draws[1]])
    assert len(curve(watched, "evaluation/quick/noisy")) == 3 and draws[0].found == draws[1].found
    files = (run / "checkpoints" / "last.ckpt" for run in (plain, watched))
    one, two = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert Run(plain).record()["config_hash"] == Run(watched).record()["config_hash"]


def test_a_resumed_run_has_each_evaluation_once(tiny: Tiny, quick: list[str]) -> None:
    run = tiny.train("run", "simcse", "stage.max_steps=4", *quick)
    before = curve(run)
    tiny.resume(run, "stage.max_steps=6")
    assert curve(run)[: len(before)] == before and [step for step, _ in curve(run)] == [0, 2, 4, 6]


@pytest.mark.slow
def test_a_task_that_needs_the_head_is_left_out_where_there_is_none(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [
        "evaluate_every=2",
        "evaluation=smoke",
        "+evaluation.tasks.lee._target_=l2v.evaluation.tasks.lee.LeeSimilarity",
    ]
    run = tiny.train("simcse", "simcse", "stage.max_steps=2", *few)
    assert not curve(run, "evaluation/smoke/masked") and len(curve(run, "evaluation/smoke/lee")) == 2
    assert "left out while training" in capsys.readouterr().err
    run = tiny.train("mntp", "mntp", "stage.max_steps=2", *few)
    assert [step for step, _ in curve(run, "evaluation/smoke/masked")] == [0, 2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate_every=5"], "evaluate_every=5: say what to evaluate: evaluation=demo"),
        (["evaluation=demo"], "evaluation=demo: say how often"),
        (["evaluation=demo", "evaluate_every=0"], "evaluate_every=0: input should be greater than or equal to 1"),
        (["evaluation=quick", "evaluate_every=5"], "evaluation.folder: must be given"),
    ],
)
def test_a_wrong_setting_is_named(tiny: Tiny, overrides: list[str], message: str) -> None:
    with pytest.raises(L2VError, match=message):
        tiny.train("run", "simcse", *overrides)


def test_missing_data_are_found_before_the_model_is_loaded(tiny: Tiny, quick: list[str], tmp_path: Path) -> None:
    (tmp_path / "data" / "stsbenchmark" / "sts-test.csv").unlink()
    with pytest.raises(L2VError, match="no such file"):
        tiny.train("run", "simcse", *quick, "model.source=/nowhere/at/all")


def test_the_scores_after_the_last_step_are_in_the_runs_record(tiny: Tiny, quick: list[str]) -> None:
    run = tiny.train("run", "mntp", *quick, "stage.max_steps=4", "stage.validate_every=2")
    last = [row for row in metrics(run) if any(name.startswith("evaluation/") for name in row)][-1]
    scores = {name: value for name, value in last.items() if name.startswith("evaluation/")}
    assert last["step"] == 4 and scores.items() <= Run(run).record()["metrics"].items()
