"""A base says what the options of its group share; an option shows only what differs, and a base is no option."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import ROOT, composed

from l2v.config.search import groups, is_base, options

CONF = ROOT / "conf"
GROUPS = groups([CONF])
FILES = sorted(file for file in CONF.rglob("*.yaml") if file.parent.parent.name != "hydra")


def name_of(file: Path) -> str:
    return file.relative_to(CONF).as_posix()


def read(file: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(file.read_text())
    assert isinstance(loaded, dict)
    return loaded


def built_on(file: Path) -> list[Path]:
    """The files that a config is made from, nearest last."""
    found: list[Path] = []
    for entry in read(file).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            other = (CONF if entry.startswith("/") else file.parent) / f"{entry.lstrip('/').partition('@')[0]}.yaml"
            found += [*built_on(other), other]
    return found


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            if where or key != "defaults":
                yield from leaves(value, f"{where}.{key}" if where else key)
    else:
        yield where, node


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in options(group, [CONF]):
        program = {"recipe": "recipe", "gpu": "plan"}.get(group, "train")
        config = composed(program, [f"{group}={option}"])
        assert config.stages if group == "recipe" else config.stage.name


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_config_repeats_what_it_is_made_from(file: Path) -> None:
    own = read(file)
    given: dict[str, Any] = {}
    for base in built_on(file):
        given |= leaves(read(base))
    # what a base asks the model for by the stage's name, a stage may write with its name
    given = {k: v.replace("${stage.name}", str(own.get("name"))) if isinstance(v, str) else v for k, v in given.items()}
    assert [key for key, value in leaves(own) if key in given and given[key] == value] == []


@pytest.mark.parametrize("group", [group for group in GROUPS if (CONF / group / "base.yaml").is_file()])
def test_every_option_is_made_from_the_base_of_its_group(group: str) -> None:
    for option, file in options(group, [CONF]).items():
        assert CONF / group / "base.yaml" in built_on(file), f"{group}={option}"


@pytest.mark.parametrize("file", [file for file in FILES if is_base(file.stem)], ids=name_of)
def test_a_base_says_what_each_of_its_keys_means(file: Path) -> None:
    before = ""
    for line in file.read_text().splitlines():
        key = line.partition(":")[0]
        if key.isidentifier() and key not in ("_target_", "defaults", "tasks"):
            assert " # " in line or before.startswith("#"), line
        before = line


def test_a_model_of_ones_own_is_a_file_of_a_few_lines(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\ndefaults: [base]\n\nsource: owner/name\n")
    config = composed("train", ["model=mine", f"hydra.searchpath=[file://{tmp_path}]"])
    assert config.model == {**composed("train", ["model=llama3.2-1b"]).model, "source": "owner/name"}
    assert config.trainer.accelerator == "gpu"


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l2v.cli.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_the_users_options_and_no_bases(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("base_mine", "mine"):
        (tmp_path / "model" / f"{name}.yaml").write_text("# Mine.\ndefaults: [base]\n")
    done = train("--help", f"--config-dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    groups = {*GROUPS, "common"}
    listed = dict(line.split(": ") for line in done.stdout.splitlines() if line.partition(":")[0] in groups)
    assert sorted(listed) == GROUPS
    assert "mine" in listed["model"].split(", ") and "llama3-8b" in listed["model"].split(", ")
    assert not [option for line in listed.values() for option in line.split(", ") if is_base(option)]


@pytest.mark.parametrize("option", ["stage=base", "stage=bas"])
def test_a_base_is_told_as_an_unknown_option(option: str) -> None:
    done = train(option)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f"error: {option}: no such option; there are distillation, mntp, simcse, supervised, word"
    )
