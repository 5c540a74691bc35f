"""The wheel carries what l2v needs: configs, texts and pages; it runs outside of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from launch import ROOT
from tiny import SENTENCES

from l2v.cli.__main__ import PROGRAMS

_SOURCES = ["l2v", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout; two seconds."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "tree" / name)
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree"))
    return next(folder.glob("*.whl"))


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", arguments[0], "--quiet", "--no-deps", "--no-index", *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr


def test_every_config_and_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"l2v/conf/{file.relative_to(ROOT / 'conf').as_posix()}" for file in (ROOT / "conf").rglob("*.yaml")}
    package = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "l2v").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert len(configs) > 50 and {"l2v/report/style.css", "l2v/evaluation/analyses/prefix_triples.jsonl"} <= package
    assert sorted((configs | package) - inside) == []
    assert {name.split("/")[0] for name in inside} == {"l2v", "l2v-0.1.0.dist-info"}


class Installed:
    """The wheel in a folder, whose programs run in another one, far from the checkout."""

    def __init__(self, folder: Path) -> None:
        self.site, self.here = folder / "site", folder / "here"
        self.here.mkdir()

    def run(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.site), "PYTHONSAFEPATH": "1", "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.here,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    found = Installed(tmp_path_factory.mktemp("installed"))
    _pip("install", "--target", str(found.site), str(wheel))
    return found


@pytest.mark.slow
def test_the_installed_configs_are_its_own(installed: Installed) -> None:
    code = "import l2v; from l2v.config import conf_folder; print(l2v.__file__, conf_folder())"
    site = installed.site.resolve()
    assert installed.run("-c", code).split() == [str(site / "l2v" / "__init__.py"), str(site / "l2v" / "conf")]


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_of_the_installed_command_says_what_it_takes(installed: Installed, program: str) -> None:
    assert len(installed.run("-m", "l2v.cli", program, "--help").splitlines()) > 3


@pytest.mark.slow
def test_the_installed_command_trains_with_a_copied_config_and_encodes(installed: Installed, tiny_model: Path) -> None:
    assert "llama3-8b" in installed.run("-m", "l2v.cli", "configs", "model")
    told = installed.run("-m", "l2v.cli", "copy", "stage/mntp", "my/stage/mine.yaml")
    assert "l2v train --config-dir my stage=mine" in told
    (installed.here / "texts.txt").write_text("\n".join(SENTENCES * 4) + "\n")
    data = ["data=files", "data.train.files=texts.txt", "data.validation.files=texts.txt"]
    small = ["stage.max_steps=2", "stage.batch_size=2", "stage.block_length=16", "stage.validation_rows=2"]
    installed.run(
        *("-m", "l2v.cli", "train", "--config-dir", "my", "stage=mine", f"model.source={tiny_model}"),
        *("name=run", *data, *small, "trainer.precision=32-true"),
    )
    assert (installed.here / "runs" / "run" / "encoder" / "config.json").is_file()
    installed.run("-m", "l2v.cli", "encode", "encoder=runs/run", "files=texts.txt", "output=vectors", "trainer=cpu")
    assert list((installed.here / "vectors").glob("*.parquet"))
    installed.run("-m", "l2v.cli", "report", "runs/run")
    page = (installed.here / "report.html").read_text()
    assert (installed.site / "l2v" / "report" / "style.css").read_text()[:80] in page
