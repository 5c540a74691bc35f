"""recipe.py on a tiny model: stages in a row, scores in between, everything reused the second time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launch import ROOT, hears_ctrl_c
from tiny import make_tiny_model

from l2v.cli import recipe as cli
from l2v.evaluation import suite
from l2v.runs.run import Run

pytest.importorskip("gensim", reason="the recipe's texts come from the package gensim")


def recipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipe.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


@pytest.mark.slow
def test_a_recipe_trains_evaluates_reports_and_is_reused(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["recipe=smoke", f"runs_dir={tmp_path}", f"model.source={tiny_model}"]
    first = recipe(*arguments)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "smoke"
    for row in ("causal", "bidirectional", "mntp", "simcse"):
        scores = json.loads((folder / row / "evaluation" / "smoke.json").read_text())["scores"]
        assert f"{scores['masked']['value']:.4f}" in first.stdout
    assert "Encoder.from_pretrained" in first.stdout
    assert (folder / "report.html").exists() and (folder / "runs.json").exists()
    lineage = json.loads((folder / "simcse" / "lineage.json").read_text())
    assert [record["stage"] for record in lineage["merged"]] == ["mntp"]

    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    second = recipe(*arguments)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("it is reused") == 2 and second.stderr.count("reused, nothing has changed") == 4
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == made


@pytest.mark.slow
def test_a_recipe_scores_all_the_layers_that_it_trained(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", num_hidden_layers=4)
    arguments = ["recipe=smoke", f"runs_dir={tmp_path}", f"model.source={model}", "model.layers=0.5", "baselines=[]"]
    assert recipe(*arguments, "~stages.simcse").returncode == 0
    file = tmp_path / "smoke" / "mntp" / "evaluation" / "smoke.json"
    of_recipe = json.loads(file.read_text())["scores"]
    command = [sys.executable, "evaluate.py", f"encoder={tmp_path}/smoke/mntp", "evaluation=smoke"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert json.loads(file.read_text())["scores"] == of_recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("stages.mntp=3", "error: stages.mntp=3: input should be a valid list", marks=pytest.mark.slow),
        pytest.param("stages=null", "error: stages=None: input should be a valid dictionary", marks=pytest.mark.slow),
        pytest.param(
            "~stages.mntp,~stages.simcse", "error: stages: none; expected one at least", marks=pytest.mark.slow
        ),
        pytest.param("overrides=model", "error: overrides=model: input should be a valid list", marks=pytest.mark.slow),
        pytest.param("stage=mntp", "error: stage=mntp: a recipe says its stages, mntp, simcse", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_of_another_form_is_told_in_one_line(override: str, message: str) -> None:
    result = recipe("recipe=smoke", *override.split(","))
    assert result.returncode == 1 and re.match(message, result.stderr) and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    overrides = ["stage=mntp", "stage.max_steps=5000", "stage.batch_size=2", "stage.block_length=64"]
    overrides += ["stage.validation_rows=4", "stage.validate_every=50"]
    mntp = ",".join(f"'{override}'" for override in overrides)
    arguments = ["recipe=smoke", f"runs_dir={tmp_path}", "baselines=[]", f"stages={{mntp:[{mntp}]}}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "recipe.py"), *arguments, f"model.source={tiny_model}"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    run = Run(tmp_path / "smoke" / "mntp")
    deadline = time.monotonic() + 120
    while not (run.checkpoints / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors and "Traceback" not in errors
    assert run.record()["status"] == "stopped" and 50 <= run.record()["step"] < 5000


@pytest.mark.slow
def test_a_mistake_in_a_late_stage_is_found_before_the_first_one_runs(tiny_model: Path, tmp_path: Path) -> None:
    wrong = "stages={mntp:['stage=mntp'],simcse:['stage=simcse','stage.batch_size=1']}"
    done = recipe("recipe=smoke", f"runs_dir={tmp_path}", wrong)
    assert done.returncode == 1
    assert "error: stage.batch_size must be at least 2" in done.stderr
    assert not (tmp_path / "smoke").exists()


@pytest.mark.slow
def test_a_mistake_in_the_evaluation_is_found_before_the_first_stage_runs(tmp_path: Path) -> None:
    evaluation = ["evaluation=sts_dev", f"evaluation.folder={tmp_path / 'gone'}"]
    done = recipe("recipe=smoke", f"runs_dir={tmp_path}", "baselines=[]", *evaluation)
    assert done.returncode == 1 and "sts-dev.csv: no such file" in done.stderr
    assert not (tmp_path / "smoke").exists()


@pytest.mark.slow
def test_names_and_folders_are_those_that_were_typed_and_stages_evaluate_while_they_train(
    tiny_model: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "größe, a"
    given = ["recipe=smoke", f"runs_dir={runs}", "name=it's (größe)", "baselines=[]", f"model.source={tiny_model}"]
    done = recipe(*given, "stages={mntp:['stage=mntp']}", "evaluate_every=1", "evaluation.tasks.masked.rows=4")
    assert done.returncode == 0, done.stderr
    metrics = (runs / "it's (größe)" / "mntp" / "metrics.jsonl").read_text()
    assert '"evaluation/smoke/masked"' in metrics


def test_deletions_of_tasks_reach_the_evaluations_of_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["evaluation=quick", "~evaluation.tasks.scifact", "seed=1"]
    monkeypatch.setattr(cli.configs, "overrides", lambda: given)
    monkeypatch.setattr(cli.configs, "choices", lambda: {"evaluation": "quick"})
    assert cli._while_training(["stage.max_steps=3"]) == {}
    for wanted in ("evaluate_every=1", "++evaluate_every=1"):
        assert cli._arguments(cli._while_training([wanted])) == given[:2]


def test_after_an_evaluation_what_is_free_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next stage trains in a process of its own, on the same GPU."""
    done: list[str] = []
    monkeypatch.setattr(suite, "evaluate", lambda *args, **settings: done.append("evaluated"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    cli._evaluate({"source": "model"}, {"suite": "none", "tasks": {}}, tmp_path)
    assert done == ["evaluated", "given back"]
