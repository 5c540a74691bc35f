"""Shell scripts of experiments and examples name modules and programs that there are."""

import importlib.util
import re
from pathlib import Path

import pytest
from launch import ROOT

SCRIPTS = sorted([*ROOT.glob("experiments/**/*.sh"), *ROOT.glob("examples/**/*.s*"), ROOT / "sweep.yaml"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_what_a_script_runs_is_there(script: Path) -> None:
    text = script.read_text().replace("$here/", f"{script.parent.relative_to(ROOT)}/")
    for module in re.findall(r"-m (l2v[\w.]*)", text):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        package = spec.submodule_search_locations is not None
        assert not package or importlib.util.find_spec(f"{module}.__main__"), f"{module} is no program"
    for program in re.findall(r"(?<![\w/-])((?:\w+/)*\w+\.py)\b", text):
        assert (ROOT / program).is_file(), program
