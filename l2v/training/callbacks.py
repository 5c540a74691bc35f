"""The progress bar of a stage, and a clean stop."""

import signal
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.progress import Progress, TaskID, TextColumn

from l2v.progress import COLUMNS, console


class StageProgress(ProgressBar):
    """One line for training and one for a validation: steps, time left, and the metrics that matter."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: Progress | None = None
        self._train = self._validate = TaskID(0)
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.max_steps
        self._train = self._open().add_task(str(pl_module.name), total=total, completed=trainer.global_step, note="")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        metrics = trainer.progress_bar_metrics
        note = "  ".join(f"{title} {metrics[key]:{form}}" for key, title, form in _SHOWN if key in metrics)
        self._open().update(self._train, completed=trainer.global_step, note=note)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validate = self._open().add_task("validation", total=trainer.num_val_batches[0], note="")

    def on_validation_batch_end(self, *args: Any) -> None:
        self._open().advance(self._validate)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open().remove_task(self._validate)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def _open(self) -> Progress:
        if self._bars is None:
            self._bars = Progress(
                *COLUMNS, TextColumn("{task.fields[note]}"), console=console, disable=not self._enabled
            )
            self._bars.start()
        return self._bars

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


_SHOWN = (
    ("train/loss", "loss", ".3f"),
    ("train/tokens_per_second", "tokens/s", ".0f"),
    ("validation/loss", "validation loss", ".3f"),
    ("validation/accuracy", "accuracy", ".3f"),
)


class GracefulStop(Callback):
    """Ctrl-C and SIGTERM end training after the batch at hand, on all ranks, with a checkpoint.

    A second signal stops at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if batches % trainer.accumulate_grad_batches:
            return  # gradients of a half-done step would be lost
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            self.signal = self.signal or signal.SIGTERM
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
            signal.signal(number, handler)
        self._before = {}
