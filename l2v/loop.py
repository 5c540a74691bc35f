"""What l2v adds to Lightning's loop: metrics that survive a resume, atomic checkpoints, a clean stop."""

import csv
import io
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import Progress, TaskID, TextColumn

from l2v.errors import L2VError, first_line
from l2v.progress import COLUMNS, console
from l2v.sources import write_text


class RunLogger(Logger):
    """Writes ``metrics.jsonl`` a line a logged step, and ``metrics.csv`` from it when training ends or stops.

    Times are seconds of training, summed over resumed parts.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "metrics.jsonl"
        self._rows = _read(self.file) if self.file.exists() else []
        self._begin = time.monotonic()
        self.count_steps: Callable[[], int] = lambda: 0
        """Optimizer steps done: Lightning's own count is behind by one while it trains, and not after a resume."""

    @property
    def name(self) -> str:
        return "run"

    @property
    def version(self) -> str:
        return ""

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return time.monotonic() - self._begin

    @rank_zero_only
    def start(self, resumed_at: int | None) -> None:
        """Drop what was logged after the step that is resumed at (and is now trained again); None drops everything."""
        self._rows = [row for row in self._rows if resumed_at is not None and row["step"] <= resumed_at]
        spent = self._rows[-1]["time"] if self._rows else 0.0
        self._begin = time.monotonic() - spent
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in self._rows))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        row = {"step": self.count_steps(), "time": round(self.seconds, 3), **values}
        self._rows.append(row)
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise L2VError(f"{self.file}: cannot be written ({error.strerror}); checkpoints are kept") from error

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: ``config.yaml`` has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if not self._rows:
            return
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.file.with_suffix(".csv"), table.getvalue())

    def has(self, step: int, name: str) -> bool:
        """Whether a metric of a step is logged."""
        return any(row["step"] == step and name in row for row in self._rows)

    def last(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for row in self._rows for name, value in row.items()}


def _read(file: Path) -> list[dict[str, float]]:
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the line that was being written when a machine went down
    return rows


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint file appears whole or not at all, and is read without unpickling objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(target.name + ".tmp")
        try:
            torch.save(checkpoint, draft)
            os.replace(draft, target)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            draft.unlink(missing_ok=True)
            raise L2VError(f"{target}: cannot be saved ({first_line(error)}); the one before is kept") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many unrelated types for a damaged file
            raise L2VError(f"{path}: not a checkpoint that l2v wrote ({first_line(error)})") from error


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


class SaveLast(Callback):
    """Saves ``last.ckpt`` at every validation and when training ends or is stopped."""

    def __init__(self, file: Path, on_save: Callable[[int], None]) -> None:
        self.file, self.on_save = file, on_save

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        if trainer.is_global_zero:
            self.on_save(trainer.global_step)
