"""Measures a task on a GPU in a process of its own. Runs in every environment: the standard library and torch."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
import timing

OUT_OF_MEMORY = "out of memory"
PACKAGES = ("l2v", "llm2vec", "torch", "transformers", "peft", "lightning", "liger_kernel", "flash_attn", "triton")
Task = Callable[[Path, dict[str, Any], dict[str, Any]], list[dict[str, float]]]
"""From the model's folder (its config), the inputs and options to rows: ``seconds`` of each measured step."""


class Clock(timing.Clock):
    """Waits for the GPU before it reads the time."""

    def begin(self) -> None:
        _wait()
        super().begin()

    def end(self) -> None:
        _wait()
        super().end()


def repeat(step: Callable[[], object], options: dict[str, Any]) -> list[dict[str, float]]:
    """``options["warmup"]`` steps, and ``options["steps"]`` that are measured."""
    clock = Clock(warmup=options["warmup"])
    for _ in range(options["warmup"] + options["steps"]):
        clock.begin()
        step()
        clock.end()
    return clock.rows


def optimize(losses: Sequence[Callable[[], torch.Tensor]], model: torch.nn.Module) -> Callable[[], object]:
    """A step of training on micro-batches: forward and backward of each, then clipping and AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5)

    def step() -> None:
        for loss in losses:
            (loss() / len(losses)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def device() -> str:
    """cuda where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype() -> torch.dtype:
    """Of the weights."""
    return torch.bfloat16 if device() == "cuda" else torch.float32


def main(tasks: dict[str, Task]) -> None:
    """``python SIDE.py TASK FOLDER RESULT OPTIONS``: run a task on a folder's inputs, write what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=tasks)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("options", type=json.loads)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    inputs = json.loads((chosen.folder / "inputs.json").read_text(encoding="utf-8"))
    try:
        found: dict[str, Any] = {"steps": tasks[chosen.task](chosen.folder / "model", inputs, chosen.options)}
    except torch.cuda.OutOfMemoryError:
        found = {"error": OUT_OF_MEMORY}
    found |= {"peak_gib": _peak_gib(), "versions": _versions()}
    chosen.result.write_text(json.dumps(found), encoding="utf-8")


def _versions() -> dict[str, str]:
    """Of the packages that this process imports: an environment may have others further down its path."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gib() -> float:
    """The most memory that torch has had on the GPU; without one, of the whole process."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else timing.peak_mib() / 2**10
