"""l2v configs and l2v copy: what can be chosen, and one of it to change."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT
from omegaconf import OmegaConf

from l2v.cli.copy import copy
from l2v.config.search import groups, meaning, options, search_path
from l2v.errors import L2VError

CONF = ROOT / "conf"
GROUPS = groups([CONF])


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def composed(name: str, config_dir: Path, *overrides: str) -> Any:
    """A config with a user's folder on the search path."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, [f"hydra.searchpath=[file://{config_dir}]", *overrides])
    return OmegaConf.to_container(config)


def test_every_group_and_option_is_listed_with_its_meaning() -> None:
    done = command("l2v.cli.configs")
    assert done.returncode == 0, done.stderr
    for group in GROUPS:
        for option, file in options(group, [CONF]).items():
            assert f"  {option}" in done.stdout and meaning(file) in done.stdout and meaning(file)
    assert "base" not in [line.split()[0] for line in done.stdout.splitlines()]


def test_one_group_with_a_users_own_options(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# A model of mine. It is small.\nsource: x\n")
    (tmp_path / "model" / "base_of_mine.yaml").write_text("# Shared.\nsource: x\n")
    done = command("l2v.cli.configs", "model", "--config-dir", str(tmp_path))
    lines = done.stdout.splitlines()
    assert lines[0] == "model=" and "llama3-8b" in done.stdout and "stage=" not in lines
    assert [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == "mine"] == ["A model of mine."]
    assert "base_of_mine" not in done.stdout


def test_a_group_that_is_not_there_is_told_in_one_line() -> None:
    done = command("l2v.cli.configs", "modle")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: modle: no such group (did you mean model?); there are ")


def test_what_a_config_says_first_is_its_meaning(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text, first in {
        "# @package _global_\n# Two lines make\n# a sentence (Gao et al. 2021). More.\n": "Two lines make a sentence "
        "(Gao et al. 2021).",
        "# Short\n#   python train.py\n": "Short",
        "# v0.2 of it, e.g. this\na: 1\n# not this\n": "v0.2 of it, e.g. this",
        "a: 1\n": "",
    }.items():
        file.write_text(text)
        assert meaning(file) == first


@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=pytest.mark.slow if group == "model" else ()) for group in GROUPS]
)
def test_a_copied_option_composes_as_it_is(group: str, tmp_path: Path) -> None:
    program = {"recipe": "recipe", "evaluation": "evaluate", "gpu": "plan"}.get(group, "train")
    for option in options(group, [CONF]):
        copy(f"{group}/{option}", tmp_path / group / f"my-{option}.yaml")
        theirs, mine = (composed(program, tmp_path, f"{group}={name}") for name in (option, f"my-{option}"))
        assert mine == theirs and theirs is not None


def test_a_copy_says_which_command_chooses_it_and_that_command_runs(tmp_path: Path) -> None:
    done = command("l2v.cli.copy", "model/llama3-8b", "my/conf/model/mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "l2v train --config-dir my/conf model=mine"
    assert (tmp_path / "my/conf/model/mine.yaml").read_text() == (CONF / "model/llama3-8b.yaml").read_text()
    shown = command("l2v.cli.train", "--config-dir", "my/conf", "model=mine", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0 and "meta-llama/Meta-Llama-3-8B-Instruct" in shown.stdout


def test_a_recipe_and_an_evaluation_name_their_own_program(tmp_path: Path) -> None:
    assert copy("recipe/smoke", tmp_path / "recipe" / "mine.yaml") == f"l2v recipe --config-dir {tmp_path} recipe=mine"
    told = copy("evaluation/smoke", tmp_path / "evaluation" / "mine.yaml")
    assert told == f"l2v evaluate --config-dir {tmp_path} evaluation=mine"


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("modl/llama3-8b", "model/x.yaml", r"modl/llama3-8b: no such group \(did you mean model\?\)"),
        ("llama3-8b", "model/x.yaml", "llama3-8b: no such group.*expected <group>/<option>"),
        ("model/llama3", "model/x.yaml", r"model/llama3: no such option \(did you mean llama3"),
        ("model/llama3-8b", "x.yaml", "expected <folder>/model/<new option>.yaml"),
        ("model/llama3-8b", "model/x.txt", "expected <folder>/model/<new option>.yaml"),
        ("model/llama3-8b", "model/llama3-8b.yaml", "model=llama3-8b is there already"),
        ("model/llama3-8b", "model/there.yaml", "there.yaml: exists; it is not written over"),
    ],
)
def test_a_copy_that_would_not_be_found_or_would_write_over_is_refused(
    name: str, file: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "there.yaml").write_text("mine")
    with pytest.raises(L2VError, match=message) as error:
        copy(name, tmp_path / file)
    assert "\n" not in str(error.value)
    assert [(f.name, f.read_text()) for f in tmp_path.rglob("*.yaml")] == [("there.yaml", "mine")]


def test_the_search_path_is_that_of_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package" / "conf").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert search_path([]) == [CONF]
    assert search_path(["--config-dir=my", "stage=mntp"]) == [CONF, Path("my")]
    assert search_path(["-cd", "my", "hydra.searchpath=[file://a/b,c]"]) == [CONF, *map(Path, ("my", "a/b", "c"))]
    assert search_path(["hydra.searchpath=[pkg://own_package.conf]"]) == [CONF, tmp_path / "own_package" / "conf"]
    assert search_path(["hydra.searchpath=[pkg://no_such.conf]"]) == [CONF]
    (tmp_path / "primary.yaml").write_text("defaults: [train]\nhydra:\n  searchpath: ['file://z']\n")
    assert search_path(["-cd", str(tmp_path), "-cn", "primary"], "train") == [CONF, tmp_path, Path("z")]
