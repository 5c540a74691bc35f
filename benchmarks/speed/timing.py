"""Measures steps in a process of their own. Runs in every environment: nothing but the standard library and torch."""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["float32", "bfloat16"]
"""bfloat16: training by autocast, with float32 weights; encoding with weights of bfloat16."""


class Clock:
    """Seconds, on the wall and of the processor, between ``begin`` and ``end``; the first ``warmup`` do not count."""

    def __init__(self, warmup: int = 1) -> None:
        self.warmup = warmup
        self.rows: list[dict[str, float]] = []

    def begin(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def end(self) -> None:
        if self.warmup:
            self.warmup -= 1
            return
        wall, processor = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        self.rows.append({"seconds": wall, "processor_seconds": processor})


Task = Callable[[Path, dict[str, Any], int, Precision], Clock]
"""Of the model's folder, the inputs, how many steps to measure, and what to compute in."""


def repeat(step: Callable[[], object], steps: int) -> Clock:
    """A warm-up step and ``steps`` more."""
    clock = Clock()
    for _ in range(steps + 1):
        clock.begin()
        step()
        clock.end()
    return clock


def optimize(loss: Callable[[], torch.Tensor], model: torch.nn.Module, precision: Precision) -> Callable[[], object]:
    """A step of training, as every peer does it: forward, under autocast in bfloat16, backward, clipping, AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_mib() -> float:
    """The most memory that this process has had, weights and libraries included.

    Not ``ru_maxrss`` on Linux: a process begins there with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(tasks: dict[str, Task], packages: list[str]) -> None:
    """``python SIDE.py TASK FOLDER RESULT``: run a task on the inputs in a folder and write what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=tasks)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--model", default="model", help="its folder in FOLDER")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    inputs = json.loads((chosen.folder / "inputs.json").read_text(encoding="utf-8"))
    clock = tasks[chosen.task](chosen.folder / chosen.model, inputs, chosen.steps, chosen.precision)
    found = {"rows": clock.rows, "peak_mib": peak_mib(), "versions": {name: _version(name) for name in packages}}
    chosen.result.write_text(json.dumps(found), encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
