"""A config that was read from a run folder or a recipe is data: no code runs that the user did not name."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch import ROOT, Tiny, composed, script
from omegaconf import OmegaConf

from l2v import config as configs
from l2v.config.compose import with_model_of_init
from l2v.config.targets import take_allowed_modules
from l2v.errors import L2VError

HOSTILE = ROOT.parent / "shared" / "cases" / "hostile_run.py"
EVIL = "evil_module"


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a run that was stopped after two of four steps, and beside it a copy of the folder."""
    folder = tmp_path_factory.mktemp("targets") / "stranger"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        Tiny(folder, tiny_model, patch).train("run", "mntp", "stage.max_steps=2")
    (folder / f"{EVIL}.py").write_text("from pathlib import Path\nPath('IMPORTED').touch()\n\nclass Thing:\n    pass\n")
    shutil.copytree(folder, folder.with_name("copy"))
    return folder


@pytest.fixture
def run(strangers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run, as it was before another test changed it."""
    shutil.rmtree(strangers)
    shutil.copytree(strangers.with_name("copy"), strangers)
    monkeypatch.chdir(strangers)
    monkeypatch.syspath_prepend(strangers)
    monkeypatch.delenv("L2V_ALLOW_MODULES", raising=False)
    yield strangers / "runs" / "run"
    sys.modules.pop(EVIL, None)


def changed(run: Path, key: str, value: object) -> None:
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    OmegaConf.save(config, run / "config.yaml")


def resume(run: Path, *more: str) -> None:
    script("train").main(composed("train", [f"resume={run}", "stage.max_steps=4", *more]))


@pytest.mark.parametrize(
    ("place", "node"),
    [
        ("logger.evil", {"_target_": "subprocess.getoutput", "cmd": "touch RAN"}),
        ("logger.evil", {"_target_": f"{EVIL}.Thing"}),
        ("logger.evil", {"_target_": "torch.utils.collect_env.run", "command": "touch RAN"}),
        ("logger.evil", {"_target_": "torch.utils.cpp_extension.load_inline", "name": "x", "cpp_sources": ""}),
        ("logger.evil", {"_target_": "lightning.pytorch.cli.LightningCLI"}),
        ("logger.evil", {"_target_": "lightning.pytorch.loggers.csv_logs.os.system", "command": "touch RAN"}),
        ("logger.evil", {"_target_": "l2v.runs.files.write_text", "file": "RAN", "text": ""}),
        ("logger.evil", {"_target_": "l2v.data.texts.Path", "file": "x"}),
        ("logger.evil", {"_target_": "l2v.data.texts.FileTexts", "files": "x"}),
        ("logger.evil", {"_target_": None}),
        ("stage.sts.more.deep", {"_target_": "os.system", "command": "touch RAN"}),
        ("data.train", {"_target_": "subprocess.getoutput", "cmd": "touch RAN"}),
        ("data.validation.files", [{"_target_": "subprocess.getoutput", "cmd": "touch RAN"}]),
        ("adapter.lora", {"_target_": "builtins.exec", "source": "open('RAN', 'w')"}),
        ("trainer._target_", "subprocess.Popen"),
        ("model.pooling", {"_target_": f"{EVIL}.Thing"}),
        ("evaluation", {"suite": "x", "tasks": {"a": {"_target_": f"{EVIL}.Thing"}}}),
    ],
)
def test_a_run_that_names_other_code_is_refused_in_one_line_and_nothing_runs(run, place, node):
    changed(run, place, node)
    with pytest.raises(L2VError) as error:
        resume(run)
    told = str(error.value)
    assert "\n" not in told and told.startswith(f"resume={run}: ") and "_target_=" in told
    assert not Path("RAN").exists() and not Path("IMPORTED").exists() and EVIL not in sys.modules


def test_the_line_says_how_to_allow_it_and_that_works(run):
    changed(run, "logger.own", {"_target_": f"{EVIL}.Thing"})
    with pytest.raises(L2VError, match=rf"add allow_modules=\[{EVIL}\]"):
        resume(run)


def test_modules_are_allowed_on_the_command_line_or_by_the_environment_only(run, monkeypatch):
    (run.parents[1] / "my_loggers.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\n\nclass Mine(CSVLogger):\n    pass\n"
    )
    changed(run, "logger.own", {"_target_": "my_loggers.Mine", "save_dir": str(run)})
    changed(run, "allow_modules", ["my_loggers"])
    with pytest.raises(L2VError, match="my_loggers.Mine is refused"):
        resume(run)
    monkeypatch.setenv("L2V_ALLOW_MODULES", "")
    assert take_allowed_modules(["resume=x", "allow_modules=[my_loggers]"]) == ["resume=x"]
    resume(run)
    assert (run / "adapter").is_dir()


def test_the_command_line_stays_free(run):
    from lightning.pytorch.loggers import CSVLogger

    (run.parents[1] / "my_loggers.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\n\nclass Mine(CSVLogger):\n    pass\n"
    )
    resume(run, "+logger.own._target_=my_loggers.Mine", f"+logger.own.save_dir={run}")
    assert issubclass(sys.modules.pop("my_loggers").Mine, CSVLogger)


@pytest.mark.parametrize("value", ["allow_modules=[a b]", "allow_modules=", "allow_modules=[os;ls]"])
def test_a_name_that_is_no_module_is_refused(value):
    with pytest.raises(L2VError, match="expected names of modules"):
        take_allowed_modules([value])


def test_nothing_in_a_saved_config_is_interpolated_again(run, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    changed(run, "stage.mask_token", "${oc.env:SECRET}")
    with pytest.raises(L2VError, match=r"stage.mask_token='\$\{oc.env:SECRET\}' is not one token"):
        resume(run)
    assert "hunter2" not in (run / "config.yaml").read_text()


def test_trust_in_a_models_code_is_not_inherited(run):
    changed(run, "model.trust_remote_code", True)
    with pytest.raises(L2VError, match="model.trust_remote_code=True lets code of the model run, which is yours"):
        resume(run)


def test_training_data_of_a_run_are_looked_at_without_running_its_code(run):
    changed(run, "data.train", {"_target_": "subprocess.getoutput", "cmd": "touch RAN"})
    with pytest.raises(L2VError, match=f"run={run}: data.train._target_=subprocess.getoutput is refused"):
        script("contamination").main(composed("contamination", [f"run={run}", "evaluation=smoke"]))
    assert not Path("RAN").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+logger.evil={_target_: subprocess.getoutput, cmd: touch RAN}", "subprocess.getoutput is refused"),
        ("+logger.evil._target_=subprocess.getoutput", "subprocess.getoutput is refused"),
        ("model.source=${oc.env:SECRET}", "holds an interpolation"),
        ("model=../../elsewhere/evil", "leads out of the folders of configs"),
        ("evaluation=[demo,../evil]", "leads out of the folders of configs"),
        ("+logger.evil={_target_: subprocess.getoutput},{_target_: os.system}", "holds several values"),
        ("hydra.run.dir=/tmp", "is for the command line only"),
        ("model.trust_remote_code=true", "is yours to say"),
    ],
)
def test_overrides_of_a_recipe_are_data_too(override, told):
    with pytest.raises(L2VError, match=told):
        configs.check_overrides([override], (), "recipe=theirs")


def test_a_recipe_that_names_other_code_is_refused_before_its_first_stage() -> None:
    theirs = "overrides=['model=smollm2-135m-embedded','+logger.evil={_target_: subprocess.getoutput, cmd: touch RAN}']"
    with pytest.raises(L2VError, match="recipe=smoke: logger.evil._target_=subprocess.getoutput is refused"):
        script("recipe").main(composed("recipe", ["recipe=smoke", theirs]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.stages.mntp={learning_rate: {_target_: os.system, command: touch RAN}}", "os.system is refused"),
        ("model.trust_remote_code=true", "is yours to say"),
        ("model.source=${oc.env:SECRET}", "holds an interpolation"),
    ],
)
def test_the_model_that_a_runs_record_names_is_data_too(override: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"overrides": ["model=llama3-8b", override]}))
    with pytest.raises(L2VError, match=told):
        with_model_of_init([f"init_from={tmp_path}"])


@pytest.mark.parametrize(
    ("logger", "value", "told"),
    [
        ("csv.save_dir", "/home/other", "logger.csv.save_dir=/home/other lies outside of the run"),
        ("csv.save_dir", "logs", "logger.csv.save_dir=logs lies outside of the run"),
        ("csv.name", "../../other", "logger.csv.name=../../other lies outside of the run"),
    ],
)
def test_loggers_of_a_saved_config_write_into_their_run_only(run: Path, logger: str, value: str, told: str) -> None:
    changed(run, "logger.csv", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(run)})
    changed(run, f"logger.{logger}", value)
    with pytest.raises(L2VError, match=f"resume={run}: {told}"):
        resume(run)


WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "p"}


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (WANDB | {"settings": {"base_url": "http://evil"}}, "logger.own.settings={'base_url': 'http://evil'} may send"),
        (WANDB | {"entity": "them"}, "logger.own.entity=them may send .* name it again"),
        ({"_target_": "lightning.pytorch.loggers.MLFlowLogger"}, "logger.own._target_=.*MLFlowLogger may send"),
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "url": "http://evil"}, "logger.own.url=http://evil may"),
    ],
)
def test_loggers_of_a_saved_config_send_nothing_to_where_it_says(run: Path, node: dict[str, object], told: str) -> None:
    changed(run, "logger.own", node)
    with pytest.raises(L2VError, match=told):
        resume(run)


def test_settings_of_loggers_that_a_run_hands_on_are_checked(tmp_path: Path) -> None:
    for override in ("+logger.wandb.settings={base_url: x}", "+logger.wandb.entity=them"):
        with pytest.raises(L2VError, match=r"logger\.wandb\.(settings|entity)=.* may send"):
            configs.check_overrides([override], [], "recipe=theirs")
    mine = ["logger=wandb", "logger.wandb.project=mine", "+logger.wandb.tags=[a]", "logger.tensorboard.version=x"]
    configs.check_overrides(mine, [], "recipe=mine")


def test_loggers_of_a_run_that_was_moved_write_where_it_is_now(run: Path) -> None:
    changed(run, "logger.csv", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": f"{run}/csv"})
    now = run.rename(run.with_name("moved"))
    resume(now)
    assert list((now / "csv").rglob("metrics.csv")) and not run.exists()


def test_a_config_that_is_cut_off_is_refused(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    for end in (0, text.index("adapter:"), text.index("  lora:"), text.index("seed:"), text.index("objective:")):
        (run / "config.yaml").write_text(text[:end])
        with pytest.raises(
            L2VError, match=f"resume={run}: its config.yaml (has no .* cut off|cannot be read|is not a)"
        ):
            resume(run)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"status": 3', '{"status": "running", "process": 3}'])
def test_a_record_that_is_none_is_one_line(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(L2VError, match=r"run.json:? ?\d?:? (not the record of a run|not JSON)"):
        resume(run)


def test_a_stage_in_a_runs_lineage_is_a_name_and_no_path(run: Path, tiny_model: Path, monkeypatch) -> None:
    lineage = json.loads((run / "lineage.json").read_text())
    tiny = Tiny(run.parents[1], tiny_model, monkeypatch)
    for stage, path, told in [
        ("x/../../../escaped", "adapter", "stage='x/../../../escaped': expected a name"),
        ("mntp", "../other/adapter", "path='../other/adapter': leads out of its folder"),
    ]:
        lineage["adapter"] |= {"stage": stage, "path": path}
        (run / "lineage.json").write_text(json.dumps(lineage))
        with pytest.raises(L2VError, match=re.escape(told)):
            tiny.train("next", "simcse", "stage.max_steps=2", f"init_from={run}", "adapter.init=new")
    assert not list(run.parents[1].rglob("*escaped*"))


def test_a_hostile_run_of_a_stranger_runs_nothing(run):
    if not HOSTILE.exists():
        pytest.skip("the shared folder with users' inputs is not there")
    copy = run.with_name("hostile")
    subprocess.run([sys.executable, HOSTILE, run, copy], check=True)
    if "evil" not in (copy / "config.yaml").read_text():
        pytest.skip("the config of this run has no logger line to replace")
    with pytest.raises(L2VError, match=r"logger.evil._target_=subprocess.getoutput is refused"):
        resume(copy)
    assert not Path("RAN_A_COMMAND").exists()


def test_every_target_of_our_own_configs_is_allowed_in_a_saved_one() -> None:
    checked = 0
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        if file.stem.startswith("base"):
            continue
        config = OmegaConf.to_container(OmegaConf.load(file))
        group = file.parent.relative_to(ROOT / "conf").as_posix()
        config = {group: config} if group != "." else config
        configs.check_definitions(config, (), file.name)
        checked += str(config).count("_target_")
    assert checked > 40


THEIRS = "# @package _global_\ndefaults:\n  - smoke\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hydra: {callbacks: {a: {_target_: evil_module.Thing}}}\n", "theirs.yaml sets hydra"),
        ("  - override /hydra/job_logging: theirs\n", "theirs.yaml sets hydra"),
        ("evaluation: {tasks: {a: {_target_: evil_module.Thing}}}\n", "evaluation.tasks.a._target_=evil_module.Thing"),
        ("  - /trainer: ../../evil\n", "leads out of the folders of configs"),
        ("evaluation: {tasks: {a: '${oc.create:{_target_: evil_module.Thing}}'}}\n", "which makes settings of a text"),
    ],
    ids=["callback", "default", "task", "another folder", "created task"],
)
def test_a_recipe_of_another_runs_nothing_of_its_own(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "theirs.yaml").write_text(THEIRS + text)
    (tmp_path / f"{EVIL}.py").write_text("from pathlib import Path\nPath('IMPORTED').touch()\nclass Thing: pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "l2v.cli.recipe", "--config-dir", "conf", "recipe=theirs"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert told in done.stderr and not (tmp_path / "IMPORTED").exists()
