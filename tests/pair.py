"""Two processes of one training (gloo, on the CPU), as torchrun starts them, for several trainings one after the other.

Most of what a pair costs is its start, so a test hands all its trainings to one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A training of the pair, by the arguments of train.py."""

    arguments: list[str]
    stop_at: int | None = None
    """Optimizer step in which the first process gets the signal."""
    signal: int = signal.SIGTERM
    gathers: bool = False
    """Whether gathers of weights are counted, in each training step."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended, on one process."""

    error: str | None = None
    """The error's type and text."""
    gathers: list[int] = field(default_factory=list)
    """Gathers of weights in each training step."""


def elastic_environments(processes: int) -> list[dict[str, str]]:
    """The environment of each process, as torchrun makes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"},
        **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"},
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run_pair(folder: Path, jobs: Sequence[Job], *, timeout: int = 600, processes: int = 2) -> list[list[Outcome]]:
    """Run trainings one after the other; outcomes a job, and in it a process.

    The processes end with the last job; where one dies or hangs, both are killed and its output is the error.
    """
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    logs = [folder / f"log-{rank}" for rank in range(processes)]
    started = []
    for environment, log in zip(elastic_environments(processes), logs, strict=True):
        with log.open("w") as output:
            command = [sys.executable, "-W", "ignore::FutureWarning", str(Path(__file__)), str(folder)]
            started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=timeout) for process in started]
    except subprocess.TimeoutExpired:
        codes = [-1] * processes
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = "\n".join(f"process {rank}:\n{log.read_text()[-4000:]}" for rank, log in enumerate(logs))
    assert codes == [0] * processes, f"exit codes {codes}\n{said}"
    by_rank = [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(processes)]
    return [[Outcome(**one) for one in of_job] for of_job in zip(*by_rank, strict=True)]


# in a process of the pair


def _main(folder: Path) -> None:
    sys.path.insert(0, str(TESTS))
    import pytest

    from l2v.process import set_up_process

    begin = time.monotonic()
    set_up_process()
    outcomes = []
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        print(f"training {number} begins at {time.monotonic() - begin:.1f} s", flush=True)
        with pytest.MonkeyPatch.context() as patch:
            # without dropout, which differs between one process and two, the views of SimCSE are equal
            patch.setattr("l2v.stages.simcse.SimCSE._check_views", lambda *_: None)
            outcomes.append(_run(Job(**job), patch))
    (folder / f"outcomes-{os.environ['RANK']}.json").write_text(json.dumps([asdict(one) for one in outcomes]))


def _run(job: Job, patch: Any) -> Outcome:
    from launch import SignalAt, train_here
    from lightning.pytorch.callbacks import Callback
    from torch.utils._python_dispatch import TorchDispatchMode

    from l2v.errors import L2VError, Stopped

    gathers = []

    class Gathers(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += "allgather_base" in str(operation)
            return operation(*args, **kwargs or {})

    class Count(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.mode = Gathers()
            self.mode.__enter__()

        def on_train_batch_end(self, *_: Any) -> None:
            self.mode.__exit__(None, None, None)
            gathers.append(self.mode.number)

    callbacks: list[Callback] = [Count()] if job.gathers else []
    if job.stop_at is not None and os.environ["RANK"] == "0":
        callbacks.append(SignalAt(job.stop_at, job.signal))
    error = None
    try:
        train_here(job.arguments, patch, callbacks)
    except (L2VError, Stopped, SystemExit) as raised:
        error = f"{type(raised).__name__}: {raised}"
        if isinstance(raised, Stopped):
            error = f"stopped by {signal.Signals(raised.signal).name}: {raised}"
    return Outcome(error, gathers)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
