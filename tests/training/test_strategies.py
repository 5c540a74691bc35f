"""Every strategy trains every stage as one process does: two processes (gloo, on the CPU), LoRA and all weights."""

import importlib.util
import json
import shutil
import signal
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from launch import SignalAt, Tiny
from pair import Job, run_pair
from quick_folder import write_quick_folder
from safetensors.torch import load_file

from l2v.errors import Stopped
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
    passes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.trainer}-{self.stage}-{self.adapter}"

    def settings(self) -> list[str]:
        loss = {"simcse": "stage.temperature=1", "supervised": "stage.loss.temperature=1"}
        dropout = ["adapter.lora.dropout=0"] if self.adapter == "lora" else []
        return [*EXACT, f"adapter={self.adapter}", *dropout, *([loss[self.stage]] if self.stage in loss else [])]


PASSES = {
    "mntp": ("stage.micro_batch_tokens=16",),  # a row of the two
    "simcse": ("stage.micro_batch_tokens=48",),
    "supervised": ("stage.micro_batch_tokens=48", "stage.grad_cache=true"),
}
OFFLOAD = ("trainer.strategy.offload_optimizer=true",)
MATRIX = [Cell(*of) for of in product(STRATEGIES, STAGES, ["lora", "none"])]
CORE = [
    Cell("fsdp", "supervised", "none", PASSES["supervised"]),
    Cell("deepspeed_zero3", "simcse", "lora"),
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


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = trained(one), trained(two)
    assert first.keys() == second.keys()
    apart = torch.cat([(value - second[name]).abs().flatten() for name, value in first.items()])
    # AdamW makes a step of a gradient that is all rounding, too: of one weight in 30,000
    assert (apart > 1e-5).sum() <= len(apart) / 10_000 and apart.max() < 1e-4


def assert_same_training(cell: Cell, one: Path, two: Path) -> None:
    # a text of SimCSE's validation has the others of its process's batch as negatives
    alone = ["validation/loss"] if cell.stage != "simcse" else []
    for metric in ("train/loss", *alone, "evaluation/quick/stsbenchmark", "evaluation/quick/sickr"):
        expected = logged(one, metric)
        assert expected and logged(two, metric) == pytest.approx(expected, abs=1e-4), metric
    assert list(logged(two, "validation/loss")) == [0, 4, 6]
    assert_same_weights(one, two)


def program(tiny: Tiny, cells: list[Cell]) -> None:
    """Stop each cell's training, go on with it, and compare it with that of one process."""
    needs_deepspeed()
    suite = ["evaluate_every=3", "evaluation=quick", f"evaluation.folder={write_quick_folder(tiny.folder / 'data')}"]
    suite += [f"~evaluation.tasks.{name}" for name in ("scifact", "banking77", "stackoverflow")]
    runs = tiny.folder / "runs"
    jobs = []
    for cell in cells:
        split = [*suite, *cell.passes, f"trainer={cell.trainer}", *TWO, f"name={cell.name}"]
        begin = tiny.overrides(cell.stage, *cell.settings(), *split)
        again = [*begin, "reuse=true"] if cell.adapter == "lora" else [f"resume={runs / cell.name}"]
        number = signal.SIGTERM if cell.adapter == "lora" else signal.SIGUSR1
        jobs += [Job(begin, stop_at=STOPPED_AT, signal=number), Job(again)]
    outcomes = run_pair(tiny.folder / "pair", jobs)
    ones: dict[tuple[str, str], Path] = {}
    for cell, stopped, resumed in zip(cells, outcomes[::2], outcomes[1::2], strict=True):
        number = "SIGTERM" if cell.adapter == "lora" else "SIGUSR1"
        assert [(one.error or "").split(":")[0] for one in stopped] == [f"stopped by {number}"] * 2, stopped
        assert [one.error for one in resumed] == [None] * 2, cell
        run = Run(runs / cell.name)
        assert run.is_finished and run.record()["step"] == 6
        assert {file.name for file in run.checkpoints.iterdir()} == {"last.ckpt", "best.ckpt"}
        kind = (cell.stage, cell.adapter)
        if kind not in ones:
            ones[kind] = tiny.train("one-" + "-".join(kind), cell.stage, *cell.settings(), *suite)
        assert_same_training(cell, ones[kind], run.folder)


@pytest.mark.slow
def test_two_processes_stop_go_on_and_end_as_one(tiny: Tiny) -> None:
    program(tiny, CORE)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", STRATEGIES)
def test_every_stage_stops_goes_on_and_ends_as_on_one_process(tiny: Tiny, trainer: str) -> None:
    program(tiny, [cell for cell in MATRIX if cell.trainer == trainer])


@pytest.mark.slow
def test_passes_give_the_step_of_one_and_gather_the_weights_for_each(tiny: Tiny) -> None:
    needs_deepspeed()
    cells = [Cell(*of, "lora", PASSES[of[1]]) for of in product(["fsdp", "deepspeed_zero2"], STAGES)]
    steps = ["stage.max_steps=2"]
    split = [
        tiny.overrides(
            cell.stage, *cell.settings(), *cell.passes, *steps, f"trainer={cell.trainer}", *TWO, f"name={cell.name}"
        )
        for cell in cells
    ]
    outcomes = run_pair(tiny.folder / "pair", [Job(arguments, gathers=True) for arguments in split])
    gathers = {}
    for cell, outcome in zip(cells, outcomes, strict=True):
        assert [one.error for one in outcome] == [None, None]
        assert outcome[0].gathers == outcome[1].gathers
        gathers[cell.trainer, cell.stage] = outcome[0].gathers
        one = tiny.train(f"one-{cell.name}", cell.stage, *cell.settings(), *steps, "stage.micro_batch_tokens=null")
        expected, found = gradient(one), gradient(tiny.folder / "runs" / cell.name)
        assert (expected - found).norm() < 1e-5 * expected.norm()
    # a pass gathers each of two layers for the way forward and again for the way back, and what is outside of them once
    passes, of_a_pass = 2, 2 * 2 + 1
    assert gathers["fsdp", "mntp"] == [passes * of_a_pass] * 2


def gradient(run: Path) -> torch.Tensor:
    """Adam's first moment: the gradients so far, the newest with the largest weight."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return torch.cat([moments["exp_avg"].flatten() for moments in state.values()])


def go_on(tiny: Tiny, run: Path, *settings: str) -> Path:
    """Resume a run of two processes on one, with the batch of both."""
    return tiny.resume(run, "trainer=cpu", "trainer.precision=32-true", "stage.batch_size=4", *settings)


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_another_number_of_processes_and_another_strategy(tiny: Tiny) -> None:
    needs_deepspeed()
    cells = [
        Cell("deepspeed_zero2", "mntp", "lora"),
        Cell("deepspeed_zero3", "mntp", "lora"),
        Cell("fsdp", "mntp", "none", ("trainer.strategy.split_checkpoint=true",)),
    ]
    runs = tiny.folder / "runs"
    jobs = []
    for cell in cells:
        more = [f"trainer={cell.trainer}", *TWO, *cell.passes, f"name={cell.name}"]
        jobs.append(Job(tiny.overrides(cell.stage, *cell.settings(), *more), stop_at=STOPPED_AT))
    one = tiny.overrides("mntp", *Cell("", "mntp", "lora").settings(), "name=one-lora", "reuse=true")
    back = runs / "one-lora"
    with pytest.raises(Stopped):
        tiny.main(one, [SignalAt(STOPPED_AT, signal.SIGTERM)])
    for trainer in ("deepspeed_zero3", "fsdp"):
        shutil.copytree(back, runs / trainer)
        jobs.append(Job([f"resume={runs / trainer}", f"trainer={trainer}", *TWO]))
    # saved in parts, and read in parts
    halves = [cells[2].stage, *cells[2].settings(), "trainer=fsdp", *TWO, *cells[2].passes, "name=halves"]
    jobs += [Job(tiny.overrides(*halves), stop_at=STOPPED_AT), Job([f"resume={runs / 'halves'}"])]
    outcomes = run_pair(tiny.folder / "pair", jobs)
    assert [one.error for of_job in outcomes[3:5] for one in of_job] == [None] * 4
    assert [one.error for one in outcomes[6]] == [None] * 2
    for kind in ("lora", "none"):
        tiny.train(f"straight-{kind}", "mntp", *Cell("", "mntp", kind).settings())
    parts = {file.name for file in (runs / "halves" / "checkpoints").iterdir()}
    assert parts == {"last.ckpt", "last-6-0", "best.ckpt", "best-6-0"}
    assert len(list((runs / "halves" / "checkpoints" / "last-6-0").iterdir())) == 2
    for name, kind in [(cell.name, cell.adapter) for cell in cells] + [
        *(("deepspeed_zero3", "lora"), ("fsdp", "lora"), ("halves", "none")),
    ]:
        if Run(runs / name).record()["status"] == "stopped":
            go_on(tiny, runs / name)
        assert_same_weights(runs / f"straight-{kind}", runs / name)


@pytest.mark.slow
def test_offload_and_hybrid_sharding_train_as_one_process_does(tiny: Tiny) -> None:
    needs_deepspeed()
    cells = [
        Cell("deepspeed_zero2", "mntp", "lora", OFFLOAD),
        Cell("deepspeed_zero3", "mntp", "lora", (*OFFLOAD, "trainer.strategy.offload_parameters=true")),
    ]
    jobs = []
    for cell in cells:
        more = [f"trainer={cell.trainer}", *TWO, *cell.passes, f"name={cell.name}"]
        begin = tiny.overrides(cell.stage, *cell.settings(), *more)
        jobs += [Job(begin, stop_at=STOPPED_AT), Job([*begin, "reuse=true"])]
    outcomes = run_pair(tiny.folder / "pair", jobs)
    assert [one.error for of_job in outcomes[1::2] for one in of_job] == [None] * 4
    groups = ["trainer=fsdp", *TWO, "trainer.devices=4", "stage.batch_size=1", "trainer.strategy.replicas=2"]
    hybrid = tiny.overrides("mntp", *Cell("", "mntp", "lora").settings(), *groups, "name=hybrid")
    (of_hybrid,) = run_pair(tiny.folder / "four", [Job(hybrid)], processes=4)
    assert [one.error for one in of_hybrid] == [None] * 4
    one = tiny.train("one", "mntp", *Cell("", "mntp", "lora").settings())
    for name in (*(cell.name for cell in cells), "hybrid"):
        assert_same_weights(one, tiny.folder / "runs" / name)


@pytest.mark.slow
def test_sixteen_bits_round_neither_where_training_starts_nor_where_it_goes_on(tiny: Tiny) -> None:
    needs_deepspeed()
    first = tiny.train("first", "mntp", *Cell("", "mntp", "lora").settings(), "stage.max_steps=2")
    still = ["stage.max_steps=2", "stage.learning_rate=1e-12", f"init_from={first}", "adapter.init=continue"]
    trainers = ["fsdp", "deepspeed_zero2", "deepspeed_zero3"]
    jobs = [
        Job(
            [
                *tiny.overrides("mntp", *still, f"trainer={trainer}", *TWO, f"name={trainer}"),
                "trainer.precision=bf16-mixed",
            ]
        )
        for trainer in trainers
    ]
    outcomes = run_pair(tiny.folder / "pair", jobs)
    assert [one.error for of_job in outcomes for one in of_job] == [None] * 6
    for trainer in trainers:
        expected, found = trained(first), trained(tiny.folder / "runs" / trainer)
        assert max((value - found[key]).abs().max().item() for key, value in expected.items()) < 1e-8, trainer
