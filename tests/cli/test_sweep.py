"""A recipe at several points, and points that start processes of their own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from launch import ROOT
from tiny import SENTENCES

from l2v.cli import train
from l2v.cli.sweep import alone, apply_to, key_of, label_of, record_stage, shared_run, wrapped
from l2v.errors import L2VError
from l2v.runs.run import Run


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", f"l2v.cli.{program}", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "COLUMNS": "160", "PYTHONPATH": path},
    )


@pytest.fixture
def given(tmp_path: Path, tiny_model: Path) -> list[str]:
    """Overrides of a tiny training."""
    (tmp_path / "train.txt").write_text("\n".join(f"{text} {text}" for text in SENTENCES * 8))
    (tmp_path / "held_out.txt").write_text("\n".join(SENTENCES * 4))
    return [
        *(f"runs_dir={tmp_path / 'runs'}", f"model.source={tiny_model}", "model.max_length=32", "data=files"),
        *(f"data.train.files={tmp_path / 'train.txt'}", f"data.validation.files={tmp_path / 'held_out.txt'}"),
        *("stage.batch_size=4", "stage.validation_rows=8", "stage.max_steps=2", "trainer.precision=32-true"),
    ]


def points(arguments: list[str]) -> list[list[str]]:
    """What Hydra makes of a command line: the values of each override."""
    parser = OverridesParser.create()
    found = []
    for argument in arguments:
        parsed = parser.parse_override(argument)
        found.append(list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [parsed.value()])
    return found


def test_overrides_of_stages_take_part_in_hydras_sweep():
    made = wrapped(["-m", "recipe=smoke", "stage.masking_probability=0.2,0.4", "seed=0,1", "model=llama3-8b"])
    assert made[:2] == ["-m", "recipe=smoke"] and made[3] == "seed=0,1"
    assert made[-1] == "swept=['stage.masking_probability','seed']"
    values = points([made[2], made[4]])
    assert [value.strip("'") for value in values[0]] == [
        "stage.masking_probability=0.2",
        "stage.masking_probability=0.4",
    ]
    assert values[1] == ["model=llama3-8b"]


@pytest.mark.parametrize(
    "override",
    [r"+stage.note='it\'s, odd'", "stage.mask_token='a\\\\'", "data.train.files=[a.txt,b.txt]", "x={a: 1, b: '${c}'}"],
)
def test_an_override_comes_through_as_it_was_written(override):
    (made,) = wrapped([override])
    assert points([made]) == [[override]]


def test_without_a_sweep_nothing_is_swept():
    assert wrapped(["--help", "seed=1", "--config-dir", "my"]) == ["--help", "seed=1", "--config-dir", "my"]


def test_a_point_is_named_by_what_differs():
    overrides = ["seed=1", "stage.masking_probability=0.2", "model=a/b"]
    assert label_of(["stage.masking_probability", "seed"], overrides) == "masking_probability-0.2_seed-1"
    assert label_of([], overrides) == ""


@pytest.mark.parametrize(
    "values", [("': '", "' '", "':\n'"), ("a/b", "a-b"), ("[1,2]", "[1,-2]", "[1-2]"), ("a" * 400, "a" * 401)]
)
def test_two_points_never_share_a_name(values):
    names = {label_of(["model.separator"], [f"model.separator={value}"]) for value in values}
    assert len(names) == len(values)
    assert all(re.fullmatch(r"model\.separator-[\w.-]+", name) and len(name) < 200 for name in names)


def test_an_override_of_a_stage_goes_to_the_stages_that_have_the_setting():
    stages = {
        "mntp": {"stage": {"masking_probability": 0.2, "max_steps": 1}},
        "simcse": {"stage": {"max_steps": 1, "loss": {"temperature": 1}}},
    }
    given = ["stage.masking_probability=0.4", "stage.max_steps=5", "trainer=ddp", "stage.loss.temperature=2"]
    assert apply_to(stages, given) == {"mntp": given[:3], "simcse": given[1:]}
    with pytest.raises(L2VError, match="stage.masking=1: none of the stages mntp, simcse has this setting"):
        apply_to(stages, ["stage.masking=1"])


def test_stages_are_the_same_whatever_their_folders_are_called():
    config = {"name": "a/mntp", "run_dir": "runs/a/mntp", "seed": 0, "stage": {"max_steps": 3}}
    known = key_of(config, ["texts"], None)
    assert known == key_of({**config, "name": "b/mntp", "run_dir": "runs/b/mntp"}, ["texts"], None)
    assert known != key_of({**config, "seed": 1}, ["texts"], None)
    assert known != key_of(config, ["texts"], "another beginning")
    assert known != key_of(config, ["other texts"], None)
    assert key_of({**config, "init_from": "a"}, [], None) != key_of({**config, "init_from": "b"}, [], None)


def test_a_run_that_lacks_its_encoder_is_not_shared(tmp_path):
    made = tmp_path / "a" / "mntp"
    made.mkdir(parents=True)
    (made / "run.json").write_text('{"status": "finished", "config_hash": "hash"}')
    record_stage(made.parent, "mntp", "key")
    assert shared_run(tmp_path / "b", "mntp", "key", "encoder") is None
    assert shared_run(tmp_path / "b", "mntp", "key", "none") == made
    (made / "encoder").mkdir()
    assert shared_run(tmp_path / "b", "mntp", "key", "encoder") == made
    assert shared_run(tmp_path / "b", "mntp", "other", "encoder") is None
    (made / "run.json").write_text('{"status": "finished", "config_hash": "of a longer training"}')  # it was resumed
    assert shared_run(tmp_path / "b", "mntp", "key", "encoder") is None


@pytest.mark.slow
def test_a_shared_stage_is_trained_anew_where_its_texts_have_changed(given, tmp_path):
    one = ["-m", "recipe=smoke", "stages={mntp:['stage=mntp','stage.block_length=16']}", "baselines=[]", *given]
    for rows, told in (("4,8", 2), ("16,32", 2), ("2,3", 4)):
        done = run("recipe", *one, f"evaluation.tasks.masked.rows={rows}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the same as in") == told, done.stderr
        if rows == "4,8":
            (tmp_path / "train.txt").write_text("\n".join(f"{text} anew {text}" for text in SENTENCES * 8))


@pytest.mark.slow
def test_points_of_a_recipe_run_side_by_side(given, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra sweep")
    one = ["recipe=smoke", "stages={mntp:['stage=mntp','stage.block_length=16']}", "baselines=[]", *given]
    done = run("recipe", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *one, "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs" / "smoke").glob("seed-*/mntp/encoder"))) == 2


@pytest.mark.slow
def test_points_share_what_they_can_and_end_with_one_report(given, tmp_path):
    arguments = ["-m", "recipe=smoke", *given, "stage.temperature=0.05,0.1", "stage.block_length=16"]
    first = run("recipe", *arguments)
    assert first.returncode == 0, first.stderr
    whole = tmp_path / "runs" / "smoke"
    assert (whole / "temperature-0.05" / "mntp" / "encoder").is_dir()
    assert not (whole / "temperature-0.1" / "mntp").exists()  # it has the first point's
    lineages = [json.loads((whole / f"temperature-{t}" / "simcse" / "lineage.json").read_text()) for t in (0.05, 0.1)]
    assert lineages[0]["merged"][0]["hash"] == lineages[1]["merged"][0]["hash"]
    assert lineages[0]["adapter"]["hash"] != lineages[1]["adapter"]["hash"]
    runs = json.loads((whole / "runs.json").read_text())
    told = json.dumps(runs)
    assert "temperature-0.05/simcse" in told and "temperature-0.1/simcse" in told and (whole / "report.html").exists()
    again = run("recipe", *arguments)
    assert again.returncode == 0 and again.stderr.count("it is reused") == 4


@pytest.mark.slow
def test_a_users_folder_of_configs_reaches_the_stages_of_a_recipe(given, tmp_path):
    (tmp_path / "conf" / "stage").mkdir(parents=True)
    (tmp_path / "conf" / "stage" / "short.yaml").write_text("defaults: [mntp, _self_]\nblock_length: 16\n")
    recipe = ["recipe=smoke", "name=own", "baselines=[]", "stages={mntp:['stage=short']}"]
    for folder in (["--config-dir", str(tmp_path / "conf")], [f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]):
        done = run("recipe", *folder, *recipe, *given)
        assert done.returncode == 0, done.stderr
    config = (tmp_path / "runs" / "own" / "mntp" / "config.yaml").read_text()
    assert "block_length: 16" in config


@pytest.mark.slow
def test_every_point_of_a_sweep_trains_on_two_processes(given, tmp_path):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    done = run("train", "-m", *given, "stage.block_length=16", *two, "seed=3,4")
    assert done.returncode == 0, done.stderr
    records = [json.loads(file.read_text()) for file in sorted((tmp_path / "runs").glob("*/run.json"))]
    assert [(one["status"], one["seed"]) for one in records] == [("finished", 3), ("finished", 4)]


@pytest.mark.parametrize("option", ["hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra/sweeper=optuna"])
def test_a_plugin_that_is_not_installed_is_told_with_its_command(option):
    plugin = f"hydra_plugins.hydra_{option.partition('=')[2].split('_')[0]}_{option.partition('=')[0][6:]}"
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(plugin):
        pytest.skip("it is installed")
    done = run("train", "-m", option, "seed=1,2")
    assert done.stderr.count("\n") == 1 and "pip install 'l2v[sweep]'" in done.stderr


@pytest.mark.slow
def test_a_point_that_fails_is_named_and_the_exit_code_says_so(tmp_path):
    done = run("train", "-m", f"runs_dir={tmp_path}", "name=none", "seed=-1,-2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for seed in (-1, -2):  # the second is tried too
        assert f"error: at seed={seed}: seed={seed}: input should be greater than or equal to 0" in done.stderr
    assert (tmp_path / "multirun.yaml").exists()  # and not where the command was given


def test_points_side_by_side_take_different_names(tmp_path, monkeypatch):
    monkeypatch.setattr(train.configs, "is_multirun", lambda: True)
    monkeypatch.setattr(train.configs, "choices", lambda: {"model": "llama", "stage": "mntp"})
    assert [train._free_name(tmp_path) for _ in range(2)] == ["llama-mntp", "llama-mntp-2"]


def test_a_sweeper_is_told_of_a_metric_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text('{"status": "finished", "metrics": {"validation/loss": 2.5}}')
    for sweeper in ("basic", "optuna"):
        monkeypatch.setattr(train.configs, "sweeper", lambda sweeper=sweeper: sweeper)
        assert train._value(Run(tmp_path), "validation/loss") == 2.5
    with pytest.raises(L2VError, match=r"objective=accuracy: .* has no such metric; there are validation/loss"):
        train._value(Run(tmp_path), "accuracy")
    monkeypatch.setattr(train.configs, "sweeper", lambda: "basic")
    assert train._value(Run(tmp_path), "accuracy") is None


def test_what_points_share_is_made_by_one_at_a_time(tmp_path):
    with alone(tmp_path, "causal"), pytest.raises(Timeout):
        FileLock(tmp_path / ".locks" / "causal").acquire(timeout=0)
    FileLock(tmp_path / ".locks" / "causal").acquire(timeout=0).lock.release()
