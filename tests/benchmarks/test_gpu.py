"""The harness of benchmarks/gpu in its small form: a tiny model, no GPU, no peer."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig

from l2v.kernels import masked_loss as fused_loss

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "speed"), str(BENCHMARKS / "gpu")]


def script(name: str) -> ModuleType:
    """Of benchmarks/gpu; other benchmarks have scripts of the same name."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", BENCHMARKS / "gpu" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run, ours = script("run"), script("ours")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    run.prepare(folder, small=True)
    return folder


def measurements(task: str, side: str) -> list[Any]:
    found = run.plan([task], reference=True, installed=["liger_kernel"], small=True)
    return [one for one in found if one.side == side]


@pytest.mark.parametrize(
    "task", [pytest.param(one, marks=pytest.mark.slow if one == "mntp" else ()) for one in run.TASKS]
)
def test_every_variant_of_l2v_runs(work: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_loss, "liger", fused_loss.liger)  # a variant replaces it, in a process of its own
    inputs = json.loads((work / "inputs.json").read_text())
    for one in measurements(task, "l2v"):
        rows = ours.TASKS[task](work / "model", inputs, {**one.options, "steps": 2})
        assert len(rows) == 2 and all(row["seconds"] > 0 for row in rows)


def test_the_plan_is_the_same_for_the_small_form_and_begins_with_both_sides() -> None:
    small, full = (
        run.plan(run.TASKS, reference=True, installed=["liger_kernel", "flash_attn"], small=small)
        for small in (True, False)
    )
    titles = [one.title for one in full]
    assert titles == [one.title for one in small] and len(titles) == len(set(titles))
    assert titles[:4] == ["MNTP, l2v", "MNTP, llm2vec", "encode, l2v", "encode, llm2vec"]
    assert full[0].options["rows"] == 16 and full[0].options["steps"] == 5
    assert all(one.side == "l2v" for one in run.plan(run.TASKS, reference=False, installed=[], small=False))


@pytest.mark.parametrize("task", run.TASKS)
def test_tokens_are_those_of_the_inputs(work: Path, task: str) -> None:
    inputs = json.loads((work / "inputs.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    assert sum(run.lengths(task, inputs, tokenizer, None)) == inputs["tokens"][task]
    if task in ("simcse", "supervised_16x"):
        assert sum(run.lengths(task, inputs, tokenizer, 2)) < inputs["tokens"][task]


def test_attention_is_counted_by_hand() -> None:
    """Two layers of width 64: scores and sums of values cost 2 x 2 x 64 operations for each pair of tokens."""
    config = LlamaConfig(**run.shapes.TINY)
    assert run.attention_flops("encode_mixed", [3, 5], config) == 2 * 4 * 64 * (9 + 25)
    assert run.attention_flops("mntp", [3, 5], config) == 3 * 2 * 4 * 64 * (9 + 25)


@pytest.mark.slow
def test_a_whole_run_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate and one measurement; the others are played, one of them too large for the memory at first."""
    calls: list[tuple[str, str, int | None]] = []
    real = run.call

    def call(side: str, task: str, options: dict[str, Any], *more: Any) -> dict[str, Any]:
        calls.append((side, task, options.get("rows")))
        if task == "matrix_rate" or (side == "l2v" and task == "mntp" and not options.get("checkpointing")):
            return real(side, task, options, *more)
        if task == "mntp" and (options["rows"] > 1 or options.get("autocast")):
            return {"error": run.OUT_OF_MEMORY}
        return {"steps": [{"seconds": 0.5}], "peak_gib": 1.0, "versions": {}}

    monkeypatch.setattr(run, "call", call)
    output = tmp_path / "results.json"
    arguments = ["--small", "--reference-path", str(tmp_path), "--work", str(tmp_path), "--output", str(output)]
    run.main([*arguments, "--tasks", "mntp"])
    assert ("llm2vec", "mntp", 2) in calls and ("llm2vec", "mntp", 1) in calls
    rows = {(row["side"], row["variant"]): row for row in json.loads(output.read_text())["measurements"]}
    first, peer = rows["l2v", ""], rows["llm2vec", ""]
    assert first["tokens"] == 4 * 16 and first["peak_gib"] > 0.05 and first["versions"]["torch"]
    assert 0 < first["utilisation"] < first["utilisation_with_attention"]
    assert peer["options"]["rows"] == 1 and peer["tokens_per_second"] == pytest.approx(2 * 64)
    assert rows["llm2vec", "autocast"]["error"] == run.OUT_OF_MEMORY

    run.main([*arguments, "--tasks", "simcse"])
    table = output.with_suffix(".md").read_text()
    assert "| MNTP | l2v | 2 rows | 64 |" in table and "| SimCSE | llm2vec, checkpointing | 4 rows |" in table
    assert "| MNTP | llm2vec, autocast | 1 rows | out of memory |" in table


def test_a_process_that_fails_or_hangs_ends_alone(tmp_path: Path) -> None:
    how = {side: {"python": sys.executable, "variables": {}} for side in ("l2v", "llm2vec")}
    found = run.call("llm2vec", "mntp", {}, tmp_path / "nothing", how, 60.0)
    assert found == {"error": "exit code 1"}
    found = run.call("l2v", "mntp", {}, tmp_path / "nothing", how, 0.01)
    assert found == {"error": "stopped after 0 s"}


def test_the_reference_is_named_by_a_python_or_a_folder(tmp_path: Path) -> None:
    none = argparse.Namespace(no_reference=True, reference_python=None, reference_path=None)
    assert list(run.sides(none)) == ["l2v"]
    folder = argparse.Namespace(no_reference=False, reference_python=None, reference_path=tmp_path)
    assert run.sides(folder)["llm2vec"]["variables"]["PYTHONPATH"] == str(tmp_path)
    assert run.sides(folder)["llm2vec"]["python"] == sys.executable


def test_what_begins_too_late_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "call", lambda *_: {"steps": [{"seconds": 1.0, "flops": 1.0}]})
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=iter(range(0, 100_000, 60)).__next__))
    monkeypatch.setattr(run, "measure", lambda one, *_: pytest.fail(f"{one.title} was measured"))
    run.main(["--small", "--no-reference", "--minutes", "1", "--work", str(tmp_path)])


def test_what_the_results_hold_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is."""
    measured: list[str] = []

    def measure(one: Any, *_: Any) -> dict[str, Any]:
        measured.append(one.title)
        row = {"task": one.task, "side": one.side, "variant": one.variant, "options": one.options}
        return row | {"error": "exit code 1"} if one.variant else row

    monkeypatch.setattr(run, "call", lambda *_: {"steps": [{"seconds": 1.0, "flops": 1.0}]})
    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run, "markdown", lambda _: "")
    arguments = ["--small", "--no-reference", "--tasks", "simcse", "--work", str(tmp_path)]
    run.main(arguments)
    first = list(measured)
    run.main([*arguments, "--missing"])
    assert first[0] == "SimCSE, l2v" and measured[len(first) :] == first[1:]
