"""The progress bar of a stage, validations at its ends, and a clean stop."""

import math
import signal
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.progress import TaskID

from l2v.progress import Display, display
from l2v.training.strategies import validates_alone


class StageProgress(ProgressBar):
    """One line for training and one for a validation: steps, time left, and the metrics that matter."""

    def __init__(self) -> None:
        super().__init__()
        self._display: Display | None = None
        self._train = self._validate = TaskID(0)
        self._validated = 0
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if shown := self._open():
            self._train = shown.add(str(pl_module.name), trainer.max_steps, trainer.global_step, announce=True)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if shown := self._open():
            metrics = trainer.progress_bar_metrics
            notes = [f"{title} {metrics[key]:{form}}" for key, title, form in _SHOWN if key in metrics]
            shown.update(self._train, trainer.global_step, notes)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if shown := self._open():
            shown.finish(self._train)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if shown := self._open():
            self._validate = shown.add("validation", int(trainer.num_val_batches[0]))
            self._validated = 0

    def on_validation_batch_end(self, *args: Any) -> None:
        if shown := self._open():
            self._validated += 1
            shown.update(self._validate, self._validated)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if shown := self._open():
            shown.finish(self._validate, keep=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _open(self) -> Display | None:
        if self._enabled and self._display is None:
            self._display = display()
        return self._display


_SHOWN = (
    ("train/loss", "loss", ".3f"),
    ("train/tokens_per_second", "tokens/s", ".0f"),
    ("validation/loss", "validation loss", ".3f"),
    ("validation/accuracy", "accuracy", ".3f"),
)
"""Metric, its title, and the format of its value; those that matter most first."""


class ValidateAtEnds(Callback):
    """Validates after the last step, and before the first where that cannot be done apart from training.

    Lightning's own ``trainer.validate`` would set a strategy up anew that splits what it trains.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0 and not validates_alone(trainer.strategy):
            self._validate(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        is_last = trainer.global_step == pl_module.max_steps
        if is_last and pl_module.max_steps % min(pl_module.validate_every, pl_module.max_steps):
            self._validate(trainer)

    def _validate(self, trainer: L.Trainer) -> None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


class GracefulStop(Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 end training after the batch at hand, on all ranks, with a checkpoint; so does time.

    A second signal stops at once. SIGUSR1 is what SLURM is asked to send before a job's end.

    Args:
        limit: ``trainer.max_time``, seconds from the first step of this process: its end stands for SIGTERM.
            Lightning's own goes on counting in a run that is resumed, which would end at once.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.signal: int | None = None
        self._limit = math.inf if limit is None else limit
        self._end = math.inf
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end = time.monotonic() + self._limit
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if batches % trainer.accumulate_grad_batches:
            return  # gradients of a half-done step would be lost
        if trainer.global_step == trainer.max_steps:
            return  # it ends by itself
        if self.signal is None and time.monotonic() > self._end:
            self.signal = signal.SIGTERM
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            received = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(received, reduce_op="max"))
            trainer.should_stop = True
            if batches % int(trainer.val_check_batch or 1):
                trainer.limit_val_batches = 0  # Lightning would validate once more before it stops

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, _: Any) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # else Lightning has put back what was there before it
                signal.signal(number, handler)
        self._before = {}
