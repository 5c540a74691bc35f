"""A user's own configs and modules: found by every program, and named where a mistake is told."""

import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT


def train(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a user's configs, one of which has a setting of its own, and a primary config that finds them."""
    for name in ("my", "primary"):
        (tmp_path / name / "stage").mkdir(parents=True)
    option = "# Mine.\ndefaults:\n  - mntp\n  - base_of_mine\n_target_: my_stages.Mine\nname: mine\n"
    (tmp_path / "my" / "stage" / "mine.yaml").write_text(option)
    (tmp_path / "my" / "stage" / "base_of_mine.yaml").write_text("# Shared.\nsparkle: 3\n")
    (tmp_path / "primary" / "own.yaml").write_text(
        f"defaults:\n  - train\n  - _self_\nhydra:\n  searchpath: ['file://{tmp_path / 'my'}']\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "way",
    [
        ["--config-dir", "my"],
        ["-cd=my"],
        ["hydra.searchpath=[file://my]"],
        ["--config-dir=primary", "--config-name=own"],
    ],
    ids=" ".join,
)
def test_a_users_options_and_settings_are_named_beside_ours(own: Path, way: list[str]) -> None:
    done = train(own, *way, "stage=minne")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: stage=minne: no such option (did you mean mine?); there are distillation, mine, "
    )
    assert "base_of_mine" not in done.stderr
    done = train(own, *way, "stage.sparkle=1")
    assert done.stderr == (
        "error: stage.sparkle: not a setting of the chosen options; it is one of stage=mine, so choose that too\n"
    )
    done = train(own, *way, "stage.sparkl=1")
    assert done.stderr == "error: stage.sparkl: no such setting (did you mean stage.sparkle?)\n"


@pytest.mark.slow
@pytest.mark.parametrize("started", ["script", "command"])
def test_a_users_module_in_the_current_folder_is_found_behind_all_others(own: Path, started: str) -> None:
    # json.py would break everything if this folder came first
    (own / "json.py").write_text("raise RuntimeError('the wrong json')\n")
    (own / "my_stages.py").write_text("class Mine:\n    def __init__(self, **settings):\n        exit('it is made')\n")
    if started == "script":
        done = train(own, "--config-dir=my", "stage=mine")
    else:
        code = "import sys; from l2v.cli.__main__ import start; start()"
        line = [sys.executable, "-P", "-c", code, "train", "--config-dir=my", "stage=mine"]
        done = subprocess.run(line, cwd=own, capture_output=True, text=True, timeout=120, check=False)
    assert "it is made" in done.stderr and "the wrong json" not in done.stderr


@pytest.mark.slow
def test_a_users_module_that_is_not_there_is_told_in_one_line(own: Path) -> None:
    done = train(own, "--config-dir=my", "stage=mine")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: stage._target_=my_stages.Mine: cannot be imported (No module named")
    assert "pip install" not in done.stderr
