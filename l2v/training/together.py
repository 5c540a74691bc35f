"""Processes that Lightning has started end together."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.distributed import DistError

from l2v.progress import say
from l2v.runs.run import LAST, Run

_PERIOD = 0.5
"""Seconds between two looks."""
_GRACE = 30
"""Seconds until a process whose connections are closed has ended, at most."""
_STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
"""Exit codes of a process that has stopped with the others, after saving."""


def lost_connection(error: BaseException) -> bool:
    """Whether another process of the training has gone away, as far as this one can tell."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


class EndTogether(Callback):
    """Where one of a machine's processes dies, the others end within seconds, and one line says which it was.

    Without it a process that waits for a dead one ends with the error of a lost connection, or (NCCL) after half an
    hour. torchrun and SLURM watch over the processes that they start.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._over = threading.Event()
        self._over.set()  # until there is somebody to watch over

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        launcher, environment = trainer.strategy.launcher, getattr(trainer.strategy, "cluster_environment", None)
        if not isinstance(launcher, _SubprocessScriptLauncher) or not isinstance(environment, LightningEnvironment):
            return
        if environment.local_rank() > 0:
            self._start(self._watch_first, os.getppid(), environment.local_rank())
        elif launcher.procs:
            children, launcher.procs = launcher.procs, list(launcher.procs)
            children.clear()  # of Lightning's own watch, which kills this process without a word
            self._start(self._watch_children, launcher.procs)

    def _start(self, watch: Callable[..., None], *arguments: Any) -> None:
        self._over = threading.Event()
        threading.Thread(target=watch, args=arguments, daemon=True).start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._over.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._over.is_set() or not isinstance(exception, Exception):
            return
        if lost_connection(exception):
            time.sleep(_GRACE)  # whose end it was is seen meanwhile, and this process ended
        self._over.set()
        for child in getattr(trainer.strategy.launcher, "procs", []):
            child.kill()  # this process says why

    def _watch_first(self, first: int, rank: int) -> None:
        while not self._over.wait(_PERIOD):
            if os.getppid() != first:
                if rank == 1:
                    self._say("the first process of the training was killed, so all have ended")
                os._exit(1)

    def _watch_children(self, children: "list[subprocess.Popen[Any]]") -> None:
        while not self._over.wait(_PERIOD):
            for rank, child in enumerate(children, start=1):
                code = child.poll()
                if code is not None and code != 0 and code not in _STOPPED:
                    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else "failed (its message is above)"
                    self._end(f"process {rank} of the training {how}, so all have ended", children)

    def _end(self, told: str, children: "list[subprocess.Popen[Any]]") -> NoReturn:
        try:
            for child in children:
                child.kill()
            self._say(told)
            self.run.update(status="failed", error=told)
        finally:
            os._exit(1)

    def _say(self, what: str) -> None:
        saved = (self.run.checkpoints / LAST).exists()
        say(f"error: {what}{f'; go on with: python train.py resume={self.run.folder}' if saved else ''}", style="red")
