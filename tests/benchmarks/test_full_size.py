"""benchmarks/full_size with a small model: every command runs, and the export gives the same vectors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "full_size" / "run.py"


@pytest.mark.slow
def test_a_model_goes_through_all_steps(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--size", "30m", "--folder", str(tmp_path / "work"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    names = ["MNTP, one step", "SimCSE, one step", "encode", "export", "encode by the export"]
    assert [line["step"] for line in lines] == names
    assert all(line["peak_bytes"] > line["peak_anonymous_bytes"] > 0 for line in lines)
    assert not (tmp_path / "work").exists()
