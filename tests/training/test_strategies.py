"""Every strategy trains every stage as one process does: two processes (gloo, on the CPU), LoRA and all weights."""

import importlib.util
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from launch import Tiny
from pair import Job, run_pair
from quick_folder import write_quick_folder
from safetensors.torch import load_file

from l2v.runs.run import Run

TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "stage.batch_size=2"]
EXACT = [
    *("stage.attention_dropout=0", "stage.learning_rate=5e-4", "seed=3"),
    *("stage.max_steps=6", "stage.validate_every=4", "trainer.log_every_n_steps=1"),
]
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3"]
STAGES = ["mntp", "simcse", "supervised"]
STOPPED_AT = 3


@dataclass(frozen=True)
class Cell:
    trainer: str
    stage: str
    adapter: str

    @property
    def name(self) -> str:
        return f"{self.trainer}-{self.stage}-{self.adapter}"

    def settings(self) -> list[str]:
        loss = {"simcse": "stage.temperature=1", "supervised": "stage.loss.temperature=1"}
        dropout = ["adapter.lora.dropout=0"] if self.adapter == "lora" else []
        return [*EXACT, f"adapter={self.adapter}", *dropout, *([loss[self.stage]] if self.stage in loss else [])]


MATRIX = [Cell(*of) for of in product(STRATEGIES, STAGES, ["lora", "none"])]
CORE = [
    *(Cell("ddp", "mntp", "lora"), Cell("fsdp", "mntp", "none")),
    *(Cell("deepspeed_zero2", "supervised", "none"), Cell("deepspeed_zero3", "simcse", "lora")),
]


def needs_deepspeed() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: `pip install 'l2v[dev]'`")


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    monkeypatch.setattr("l2v.stages.simcse.SimCSE._check_views", lambda *_: None)
    return Tiny(tmp_path, tiny_model, monkeypatch)


def trained(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "adapter" / "adapter_model.safetensors"
    return load_file(folder if folder.exists() else run / "encoder" / "model.safetensors")


def logged(run: Path, metric: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row[metric]) for row in rows if metric in row]
    assert len(dict(found)) == len(found)
    return dict(found)


def assert_same_training(cell: Cell, one: Path, two: Path) -> None:
    # a text of SimCSE's validation has the others of its process's batch as negatives
    alone = ["validation/loss"] if cell.stage != "simcse" else []
    for metric in ("train/loss", *alone, "evaluation/quick/stsbenchmark", "evaluation/quick/sickr"):
        expected = logged(one, metric)
        assert expected and logged(two, metric) == pytest.approx(expected, abs=1e-4), metric
    assert list(logged(two, "validation/loss")) == [0, 4, 6]
    first, second = trained(one), trained(two)
    assert first.keys() == second.keys()
    assert max((value - second[name]).abs().max().item() for name, value in first.items()) < 1e-5


def program(tiny: Tiny, cells: list[Cell]) -> None:
    """Stop each cell's training, go on with it, and compare it with that of one process."""
    needs_deepspeed()
    suite = ["evaluate_every=3", "evaluation=quick", f"evaluation.folder={write_quick_folder(tiny.folder / 'data')}"]
    suite += [f"~evaluation.tasks.{name}" for name in ("scifact", "banking77", "stackoverflow")]
    runs = tiny.folder / "runs"
    jobs = []
    for cell in cells:
        split = [*suite, f"trainer={cell.trainer}", *TWO, f"name={cell.name}"]
        begin = tiny.overrides(cell.stage, *cell.settings(), *split)
        jobs += [Job(begin, stop_at=STOPPED_AT), Job([f"resume={runs / cell.name}"])]
    outcomes = run_pair(tiny.folder / "pair", jobs)
    ones: dict[tuple[str, str], Path] = {}
    for cell, stopped, resumed in zip(cells, outcomes[::2], outcomes[1::2], strict=True):
        assert [(one.error or "").split(":")[0] for one in stopped] == ["Stopped"] * 2, stopped
        assert [one.error for one in resumed] == [None] * 2, cell
        run = Run(runs / cell.name)
        assert run.is_finished and run.record()["step"] == 6
        assert {file.name for file in run.checkpoints.iterdir()} == {"last.ckpt", "best.ckpt"}
        kind = (cell.stage, cell.adapter)
        if kind not in ones:
            ones[kind] = tiny.train("one-" + "-".join(kind), cell.stage, *cell.settings(), *suite)
        assert_same_training(cell, ones[kind], run.folder)


def test_two_processes_stop_go_on_and_end_as_one(tiny: Tiny) -> None:
    program(tiny, CORE)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", STRATEGIES)
def test_every_stage_stops_goes_on_and_ends_as_on_one_process(tiny: Tiny, trainer: str) -> None:
    program(tiny, [cell for cell in MATRIX if cell.trainer == trainer])
