"""The campaign finds faults: what it does to a program happens, and what is wrong after it is told."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
from reliability import trials  # noqa: E402
from reliability.programs import Outcome, Program, programs  # noqa: E402
from reliability.run import markdown  # noqa: E402
from reliability.trials import Known, Trial  # noqa: E402

PROGRAM = """
import pathlib, sys, time
state = pathlib.Path("state")
done = int(state.read_text()) if state.exists() else 0
for step in range(done, 5):
    time.sleep(0.05)
    pathlib.Path("new").write_text(str(step + 1))
    pathlib.Path("new").replace(state)
pathlib.Path("made").write_text({made})
"""


def _known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> Known:
    """A program of a few lines in the place of l2v's."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "program.py").write_text(PROGRAM.format(made=made), encoding="utf-8")
    monkeypatch.setattr("reliability.programs.ROOT", tmp_path / "root")
    command = ("program.py",)
    program = Program("program", command, lambda _: command, lambda folder: (folder / "made").read_text())
    return trials.undisturbed(program, tmp_path)


def test_a_program_that_goes_on_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = _known(tmp_path, monkeypatch, made='"whole"')
    assert known.digest == "whole"
    for seed in range(3):
        assert trials.killed(known, tmp_path, random.Random(seed)).fault is None


def test_one_that_does_not_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes another thing where it was stopped."""
    known = _known(tmp_path, monkeypatch, made='"whole" if done == 0 else "half"')
    known = replace(known, seconds=0.0)  # killed before it begins: as if it had never run
    assert trials.killed(known, tmp_path, random.Random(0)).fault is None
    # stopped at step 3 by a file of this size
    (tmp_path / "trial").mkdir(exist_ok=True)
    monkeypatch.setattr(trials, "fresh", lambda folder: (folder / "state").write_text("3") and folder)
    assert trials.killed(known, tmp_path, random.Random(0)).fault == "wrong"


def test_a_run_that_was_killed_after_its_end_is_left_as_it_is(tmp_path: Path) -> None:
    train = programs(tmp_path)[0]
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    for record, goes_on in (('{"status": "running"}', "resume=run"), ('{"status": "finished"}', "reuse=true")):
        (run / "run.json").write_text(record)
        assert train.goes_on(tmp_path)[-1] == goes_on
    (run / "run.json").write_text("{")
    assert train.goes_on(tmp_path)[-1] == "resume=run"


def test_ends_are_told_apart(tmp_path: Path) -> None:
    traceback = Outcome(1, "Traceback (most recent call last)\n  ...\nKeyError: 'x'", 1.0)
    line = Outcome(1, "some notes\nerror: the file is damaged; make it anew", 1.0)
    assert traceback.has_traceback and not traceback.is_one_line
    assert line.is_one_line and not Outcome(0, "", 1.0).is_one_line and not Outcome(None, "", 1.0).is_one_line


def test_the_table_counts() -> None:
    found = [Trial("killed: a", "", None), Trial("killed: a", "", "lost"), Trial("b", "", None)]
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:]] for row in markdown(found).splitlines()
    }
    assert rows["killed: a"][:3] == ["2", "1", "1"] and rows["b"][:3] == ["1", "1", ""]
