"""The harness of benchmarks/speed, on a tiny model and without peers."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from tiny import SENTENCES, make_tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "speed")]
import inputs as given  # noqa: E402
import l2v_tasks  # noqa: E402
import run  # noqa: E402


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    model = make_tiny_model(folder / "tiny")
    run.prepare(folder, str(model), given.SMALL, SENTENCES, SENTENCES)
    return folder


@pytest.mark.parametrize("precision", run.PRECISIONS)
@pytest.mark.parametrize("task", list(l2v_tasks.TASKS))
def test_every_task_of_l2v_runs(work: Path, task: str, precision: run.Precision) -> None:
    inputs = json.loads((work / "inputs.json").read_text())
    clock = l2v_tasks.TASKS[task](work / "model", inputs, 2, precision)
    assert len(clock.rows) == 2
    assert all(row["seconds"] > 0 for row in clock.rows)


def test_the_sides_ask_for_tasks_that_there_are() -> None:
    for side in run.sides([], Namespace()):
        assert {task + side.suffix for task in side.tasks} <= l2v_tasks.TASKS.keys(), side.name


@pytest.mark.slow
def test_a_whole_run(work: Path) -> None:
    """One task in processes of its own, against itself in the place of a peer, up to the table."""
    inputs = json.loads((work / "inputs.json").read_text())
    own = run.Side("l2v", sys.executable, BENCHMARKS / "speed" / "l2v_tasks.py", ("encode_short",))
    other = run.Side("peer", sys.executable, own.script, own.tasks)
    times = {"rounds": 1, "threads": 1, "steps": 1}
    *_, rows = run.measure([own, other], ["encode_short", "mntp"], run.PRECISIONS, work, **times)
    again = run.measure([own, other], ["encode_short"], run.PRECISIONS, work, known=rows, **times)
    assert next(again, None) is None  # nothing is left to measure
    expected = [("l2v", "float32"), ("l2v", "bfloat16"), ("peer", "float32"), ("peer", "bfloat16")]
    assert [(row["side"], row["precision"]) for row in rows] == expected
    rates = run.matrix_rate(1, work / "model")
    tasks = run.summary(rows, inputs, work / "model", rates)
    row = tasks["encode_short"]["bfloat16"]
    seconds = {(r["side"], r["precision"]): r["rows"][0]["seconds"] for r in rows}
    faster = seconds["l2v", "float32"] / seconds["l2v", "bfloat16"]
    assert row["sides"]["l2v"]["float32_time"] == pytest.approx([faster] * 3)
    assert row["sides"]["l2v"]["peak_mib"] > 50
    assert row["ratios"]["peer / l2v"]["memory"][0] == pytest.approx(1, rel=0.2)
    results = {
        "machine": {"processor": run.processor(), "threads": 1, "torch": "2"},
        "matrix_rate": rates,
        "tasks": tasks,
        "startup": {"import l2v": [0.1]},
    }
    table = run.markdown(results)
    assert "| encode_short |" in table and "| bfloat16 | peer |" in table


def test_the_floor_counts_real_tokens(work: Path) -> None:
    """By hand for the tiny Llama: 2 layers of width 32, 4 heads of 8, 2 of them for keys, 64 inside."""
    inputs = json.loads((work / "inputs.json").read_text())
    weights = 2 * (2 * 32 * 8 * (4 + 2) + 3 * 32 * 64)
    assert given.floor_flops("encode_long", inputs, work / "model") == 2 * inputs["tokens"]["encode_long"] * weights
    head = 4 * inputs["hidden_tokens"] * 32 * 384
    assert given.floor_flops("mntp", inputs, work / "model") == 4 * 2 * 16 * weights + head
