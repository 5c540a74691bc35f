"""Two processes (gloo, on the CPU) train as one does, and signals end a real process cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from launch import ROOT, Tiny, hears_ctrl_c
from omegaconf import OmegaConf
from quick_folder import write_quick_folder
from safetensors.torch import load_file

from l2v.runs.run import Run
from l2v.stages.simcse import SimCSE

EXACT = ["adapter.lora.dropout=0", "stage.max_steps=4", "stage.schedule_steps=8", "stage.learning_rate=1e-2", "seed=3"]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "stage.batch_size=2"]


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


UNCHECKED = """
from l2v.stages.simcse import SimCSE
SimCSE._check_views = lambda *_: None
"""
WRITERS = """
from l2v.runs.run import Run
update = Run.update
def noted(run, **fields):
    with (Path(__file__).parent / "writers").open("a") as file:
        file.write(f"{config.process_rank()}\\n")
    update(run, **fields)
Run.update = noted
"""
SIGNAL = """
import dataclasses, os
from lightning.pytorch.callbacks import Callback
class Send(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.is_global_zero and (trainer.global_step, "training") == AT:
            os.kill(os.getpid(), NUMBER)
    def on_validation_batch_start(self, trainer, *_):
        if AT == (0, "validation"):
            os.kill(os.getpid(), NUMBER)
build = config.build_training
config.build_training = lambda settings: dataclasses.replace(build(settings), callbacks=[Send()])
"""


def changed(file: Path, change: str) -> Path:
    """train.py after some lines of Python, in every process of a training."""
    file.write_text(
        f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from launch import script
from l2v import config
{change}
config.run(script("train").main, name="train")
"""
    )
    return file


def signalled(file: Path, number: int, step: int, part: str) -> Path:
    return changed(file, f"NUMBER, AT = {int(number)}, {(step, part)}\n{SIGNAL}")


def start(arguments: list[str], program: Path = ROOT / "train.py", cwd: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
        preexec_fn=hears_ctrl_c,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        _, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, errors
    return errors


def wait_for_checkpoint(run: Run) -> None:
    deadline = time.monotonic() + 120
    while not (run.checkpoints / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def validation_losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = [(row["step"], row["validation/loss"]) for row in rows if "validation/loss" in row]
    assert len(dict(validated)) == len(validated)
    return dict(validated)


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert all(torch.allclose(value, second[name], atol=1e-5) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_train_and_go_on_as_one_with_twice_the_batch(tiny: Tiny, trainer: str) -> None:
    exact = [*EXACT, "stage.validate_every=3"]
    one = tiny.train("one", "mntp", *exact)
    noting = changed(tiny.folder / "noting.py", WRITERS)
    row_by_row = ["stage.micro_batch_tokens=16"] if trainer == "ddp" else []
    finish(start(tiny.overrides("mntp", *exact, *row_by_row, f"trainer={trainer}", *TWO, "name=two"), noting))
    two = tiny.folder / "runs" / "two"
    assert_same_weights(one, two)
    record = json.loads((two / "run.json").read_text())
    assert record["status"] == "finished" and record["step"] == 4
    # two processes that write the same file tear it up
    assert set((tiny.folder / "writers").read_text().split()) == {"0"}
    losses = validation_losses(one)
    assert list(losses) == [0, 3, 4]
    assert validation_losses(two) == pytest.approx(losses, abs=1e-4)

    straight = tiny.train("straight", "mntp", *exact, "stage.max_steps=8")
    finish(start([f"resume={two}", "stage.max_steps=8"]))
    assert_same_weights(straight, two)
    assert Run(two).is_finished and Run(two).record()["step"] == 8


@pytest.mark.slow
def test_simcse_takes_the_negatives_of_both_processes(tiny: Tiny) -> None:
    # without dropout, which would differ between one process and two, the views are equal and are refused
    exact = [*EXACT, "stage.attention_dropout=0", "stage.temperature=1", "stage.max_steps=1"]
    with tiny.patch.context() as patch:
        patch.setattr(SimCSE, "_check_views", lambda *_: None)
        one = tiny.train("one", "simcse", *exact)
    unchecked = changed(tiny.folder / "unchecked.py", UNCHECKED)
    finish(start(tiny.overrides("simcse", *exact, "trainer=ddp", *TWO, "name=two"), unchecked))
    first, second = gradient(one), gradient(tiny.folder / "runs" / "two")
    assert first.norm() > 0
    assert (first - second).norm() < 1e-4 * first.norm()


IN_PARTS = ["stage.micro_batch_tokens=48", "stage.grad_cache=true"]


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        pytest.param(
            *("ddp", [*IN_PARTS, "trainer.accumulate_grad_batches=2", "model.gradient_checkpointing=selective"]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("ddp", ["stage.loss.directions=[document-query,query-query]", "stage.loss.dimensions=[8]"]),
            marks=pytest.mark.slow,
        ),
        pytest.param("fsdp", [], marks=pytest.mark.slow),
    ],
    ids=["grad cache", "directions", "fsdp"],
)
def test_supervised_on_two_processes_is_that_on_one(tiny: Tiny, trainer: str, settings: list[str]) -> None:
    # rows have none, one or two hard negatives, and the last batch of the validation is incomplete
    exact = [*EXACT, "stage.loss.temperature=1", "stage.max_steps=1", "trainer.log_every_n_steps=1", *settings]
    one = tiny.train("one", "supervised", *exact)
    finish(start(tiny.overrides("supervised", *exact, f"trainer={trainer}", *TWO, "name=two")))
    two = tiny.folder / "runs" / "two"
    first, second = gradient(one), gradient(two)
    assert first.norm() > 0
    assert (first - second).norm() < 1e-4 * first.norm()
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), abs=1e-4)
    for metric in ("validation/loss", "validation/accuracy", "validation/mrr/odd"):
        assert len(logged(one, metric)) == 2
        assert logged(two, metric) == pytest.approx(logged(one, metric), abs=1e-4)


NOTHING_TO_DO = """
from l2v.data.collate import TripletBatch
whole = TripletBatch.__call__
# the last two rows of a batch of four only fill it up: the second of two processes has no others
TripletBatch.__call__ = lambda self, rows: whole(self, [(row, -1 if key % 4 > 1 else key) for row, key in rows])
"""


@pytest.mark.slow
def test_a_process_without_rows_of_its_own_takes_part(tiny: Tiny) -> None:
    exact = [*EXACT, "stage.loss.temperature=1", "trainer.log_every_n_steps=1", *IN_PARTS]
    for name, more in (("one", []), ("two", ["trainer=ddp", *TWO])):
        program = changed(tiny.folder / f"{name}.py", NOTHING_TO_DO)
        finish(start(tiny.overrides("supervised", *exact, *more, f"name={name}"), program))
    one, two = (tiny.folder / "runs" / name for name in ("one", "two"))
    first, second = gradient(one), gradient(two)
    assert first.norm() > 0
    assert (first - second).norm() < 1e-4 * first.norm()
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_evaluate_while_they_train_as_one_does(tiny: Tiny, trainer: str) -> None:
    suite = ["evaluate_every=2", "evaluation=quick", f"evaluation.folder={write_quick_folder(tiny.folder / 'data')}"]
    suite += [f"~evaluation.tasks.{name}" for name in ("scifact", "banking77", "stackoverflow")]
    exact = [*EXACT, *suite]
    one = tiny.train("one", "mntp", *exact)
    finish(start(tiny.overrides("mntp", *exact, f"trainer={trainer}", *TWO, "name=two")))
    two = tiny.folder / "runs" / "two"
    for task in ("stsbenchmark", "sickr"):
        values = logged(one, f"evaluation/quick/{task}")
        assert len(values) == 3 and logged(two, f"evaluation/quick/{task}") == pytest.approx(values, abs=1e-3)
    assert_same_weights(one, two)


def logged(run: Path, metric: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[metric] for row in rows if metric in row]


def gradient(run: Path) -> torch.Tensor:
    """The gradient of the only step, times 1 - beta1: Adam's first moment."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return torch.cat([moments["exp_avg"].flatten() for moments in state.values()])


@pytest.mark.slow
def test_reuse_goes_on_with_two_processes_that_were_stopped(tiny: Tiny) -> None:
    arguments = tiny.overrides("mntp", *EXACT, "trainer=ddp", *TWO, "name=two", "reuse=true")
    two = Run(tiny.folder / "runs" / "two")
    finish(start(arguments, signalled(tiny.folder / "stop.py", signal.SIGTERM, 1, "training")), code=143)
    assert two.record()["status"] == "stopped" and two.record()["step"] == 2
    finish(start(arguments))
    assert two.is_finished and two.record()["step"] == 4
    assert_same_weights(tiny.train("one", "mntp", *EXACT), two.folder)


KILL = """
import dataclasses, os, signal
from lightning.pytorch.callbacks import Callback
class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if trainer.global_step == 3 and os.environ["RANK"] == "1" and first:
            os.kill(os.getpid(), signal.SIGKILL)
build = config.build_training
config.build_training = lambda settings: dataclasses.replace(build(settings), callbacks=[Kill()])
"""


@pytest.mark.slow
def test_torchrun_goes_on_after_a_process_was_killed_without_a_name(tiny: Tiny) -> None:
    exact = [*EXACT, "stage.validate_every=2"]
    killed = changed(tiny.folder / "killed.py", KILL)
    torchrun = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.2", str(killed)]
    program = Path(torch.distributed.run.__file__)
    finish(start([*torchrun, *tiny.overrides("mntp", *exact, "trainer=ddp", *TWO)], program, tiny.folder))
    (two,) = (tiny.folder / "runs").iterdir()
    assert Run(two).is_finished and Run(two).record()["step"] == 4
    assert_same_weights(tiny.train("one", "mntp", *exact), two)


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_training_in_one_line(tiny: Tiny) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    processes = [
        start(
            tiny.overrides("mntp", "stage.max_steps=5000", f"name={number.name}"),
            signalled(tiny.folder / f"{number.name}.py", number, 0, "validation"),
        )
        for number in numbers
    ]
    for number, process in zip(numbers, processes, strict=True):
        errors = finish(process, code=128 + number)
        run = Run(tiny.folder / "runs" / number.name)
        assert errors.strip() == f"stopped; what {run.folder} had saved before is kept"
        assert run.record()["status"] == "stopped" and run.record()["step"] == 0
        assert "train/loss" not in (run.folder / "metrics.jsonl").read_text()


SIGTERM_WHILE = """
import importlib, os, signal
module = importlib.import_module(MODULE)
def killed(*arguments, **settings):
    os.kill(os.getpid(), signal.SIGTERM)
    raise SystemExit("the signal was not heard")
setattr(module, NAME, killed)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"), [("l2v.data.tokens", "write_rows"), ("l2v.runs.initialization", "config_hash")]
)
def test_sigterm_before_training_is_as_ctrl_c(tiny: Tiny, monkeypatch, module: str, name: str) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tiny.folder / "cache"))
    module, name = ("l2v.cli.train", name) if name == "config_hash" else (module, name)
    program = changed(tiny.folder / "program.py", f"MODULE, NAME = {module!r}, {name!r}\n{SIGTERM_WHILE}")
    errors = finish(start(tiny.overrides("mntp", "name=run"), program), code=143)
    assert errors.strip() in (
        "stopped; what was saved before is kept",
        f"stopped; what {tiny.folder / 'runs' / 'run'} had saved before is kept",
    )
    assert not list(tiny.folder.rglob("*.tmp-*"))
    if name == "write_rows":
        assert Run(tiny.folder / "runs" / "run").record()["status"] == "stopped"
    else:
        assert not (tiny.folder / "runs" / "run").exists()


@pytest.mark.slow
def test_torchrun_needs_no_name(tiny: Tiny) -> None:
    settings = [*tiny.overrides("mntp", "stage.max_steps=2"), "trainer=ddp", "trainer.accelerator=cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(ROOT / "train.py"), *settings, "trainer.devices=2"],
        capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [run] = (tiny.folder / "runs").iterdir()
    assert Run(run).is_finished


@pytest.mark.slow
def test_a_sweep_without_a_name_makes_a_run_for_each_value(tiny: Tiny) -> None:
    arguments = tiny.overrides("mntp", "stage.max_steps=1", "stage.learning_rate=1e-3,1e-4", "-m")
    finish(start(arguments, cwd=tiny.folder))
    *runs, multirun = sorted((tiny.folder / "runs").iterdir(), key=lambda path: (path.is_file(), path))
    assert multirun.name == "multirun.yaml"  # of hydra, and not where the command was given
    assert not (tiny.folder / "multirun.yaml").exists()
    assert [run.name for run in runs] == ["smollm2-135m-embedded-mntp", "smollm2-135m-embedded-mntp-2"]
    assert all(Run(run).is_finished for run in runs)
    rates = [OmegaConf.load(run / "config.yaml").stage.learning_rate for run in runs]
    assert rates == [1e-3, 1e-4]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(of, marks=pytest.mark.slow) for of in (signal.SIGTERM, signal.SIGUSR1))]
)
def test_a_signal_ends_training_with_a_checkpoint(tiny: Tiny, number: signal.Signals) -> None:
    run = Run(tiny.folder / "runs" / "stopped")
    process = start(tiny.overrides("mntp", "stage.max_steps=5000", "name=stopped"))
    wait_for_checkpoint(run)
    process.send_signal(number)
    errors = finish(process, code=128 + number)
    assert f"go on with: python train.py resume={run.folder}" in errors
    assert "Traceback" not in errors
    record = run.record()
    assert record["status"] == "stopped" and 0 < record["step"] < 5000
    state = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    assert state["global_step"] == record["step"]


FAIL = """
import dataclasses, os
from lightning.pytorch.callbacks import Callback
from l2v.errors import L2VError
class Fail(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            raise ERROR
build = config.build_training
config.build_training = lambda settings: dataclasses.replace(build(settings), callbacks=[Fail()])
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["L2VError('a bad row')", "ValueError('a bad row')"])
def test_where_a_process_fails_it_says_why_and_the_others_end(tiny: Tiny, error: str) -> None:
    fails = changed(tiny.folder / "fails.py", FAIL.replace("ERROR", error))
    errors = finish(start(tiny.overrides("mntp", *EXACT, "trainer=ddp", *TWO, "name=failed"), fails), code=1)
    first, second = [line for line in errors.splitlines() if line.startswith("error") or "Traceback" in line]
    assert "a bad row" in first
    assert second.startswith("error: process 1 of the training failed (its message is above), so all have ended")
    record = Run(tiny.folder / "runs" / "failed").record()
    assert record["status"] == "failed" and record["error"].startswith("process 1 of the training failed")


def children_of(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the first", "another"])
def test_where_a_process_is_killed_the_others_end_and_one_line_says_it(tiny: Tiny, killed: str) -> None:
    run = Run(tiny.folder / "runs" / "killed")
    process = start(tiny.overrides("mntp", "stage.max_steps=50000", "trainer=ddp", *TWO, "name=killed"))
    wait_for_checkpoint(run)
    (other,) = children_of(process.pid)
    os.kill(process.pid if killed == "the first" else other, signal.SIGKILL)
    begin = time.monotonic()
    errors = finish(process, code=-signal.SIGKILL if killed == "the first" else 1)  # the pipes of both are closed
    assert time.monotonic() - begin < 60
    (line,) = [line for line in errors.splitlines() if "error" in line.lower() or "Traceback" in line]
    which = "the first process" if killed == "the first" else "process 1"
    why = "" if killed == "the first" else " (SIGKILL)"
    go_on = f"go on with: python train.py resume={run.folder}"
    assert line == f"error: {which} of the training was killed{why}, so all have ended; {go_on}"
    tiny.resume(run.folder, "stage.max_steps=60", "trainer=cpu", "stage.batch_size=4")  # the rows of two processes
    assert run.is_finished
