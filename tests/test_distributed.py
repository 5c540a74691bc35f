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
from launch import ROOT, Tiny
from safetensors.torch import load_file

from l2v.runs import Run
from l2v.stages.simcse import SimCSE

EXACT = ["adapter.lora.dropout=0", "stage.max_steps=4", "stage.learning_rate=1e-2", "seed=3"]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "stage.batch_size=2"]


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


UNCHECKED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from launch import ROOT, script
from l2v import config
from l2v.stages.simcse import SimCSE
SimCSE._check_views = lambda *_: None
config.run(script("train").main, conf=ROOT / "conf", name="train")
"""


def start(arguments: list[str], program: Path = ROOT / "train.py") -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("L2V_RUN_DIR", None)
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    return errors


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def validation_losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["validation/loss"] for row in rows if "validation/loss" in row]


def test_two_processes_train_as_one_with_twice_the_batch(tiny: Tiny) -> None:
    one = tiny.train("one", "mntp", *EXACT)
    finish(start(tiny.overrides("mntp", *EXACT, "trainer=ddp", *TWO, "name=two")))
    two = tiny.folder / "runs" / "two"
    assert all(torch.allclose(value, weights(two)[name], atol=1e-5) for name, value in weights(one).items())
    assert validation_losses(two) == pytest.approx(validation_losses(one), abs=1e-4)


def test_simcse_takes_the_negatives_of_both_processes(tiny: Tiny) -> None:
    # without dropout, which would differ between one process and two, the views are equal and are refused
    exact = [*EXACT, "stage.attention_dropout=0", "stage.temperature=1", "stage.max_steps=1"]
    with tiny.patch.context() as patch:
        patch.setattr(SimCSE, "_check_views", lambda *_: None)
        one = tiny.train("one", "simcse", *exact)
    unchecked = tiny.folder / "unchecked.py"
    unchecked.write_text(UNCHECKED)
    finish(start(tiny.overrides("simcse", *exact, "trainer=ddp", *TWO, "name=two"), unchecked))
    first, second = gradient(one), gradient(tiny.folder / "runs" / "two")
    assert first.norm() > 0
    assert (first - second).norm() < 1e-4 * first.norm()


def gradient(run: Path) -> torch.Tensor:
    """The gradient of the only step, times 1 - beta1: Adam's first moment."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return torch.cat([moments["exp_avg"].flatten() for moments in state.values()])


def test_fully_sharded_training_equals_one_process(tiny: Tiny) -> None:
    one = tiny.train("one", "mntp", *EXACT)
    finish(start(tiny.overrides("mntp", *EXACT, "trainer=fsdp", *TWO, "name=sharded")))
    sharded = weights(tiny.folder / "runs" / "sharded")
    assert all(torch.allclose(value, sharded[name], atol=1e-5) for name, value in weights(one).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_a_checkpoint(tiny: Tiny, number: signal.Signals) -> None:
    run = Run(tiny.folder / "runs" / "stopped")
    process = start(tiny.overrides("mntp", "stage.max_steps=5000", "name=stopped"))
    deadline = time.monotonic() + 120
    while not (run.checkpoints / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    errors = finish(process, code=128 + number)
    assert f"go on with: python train.py resume={run.folder}" in errors
    assert "Traceback" not in errors
    record = run.record()
    assert record["status"] == "stopped" and 0 < record["step"] < 5000
    state = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    assert state["global_step"] == record["step"]
