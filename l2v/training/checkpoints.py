"""Checkpoints that appear whole or not at all, and are read without unpickling."""

import contextlib
import functools
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from l2v.errors import Diverged, L2VError, first_line
from l2v.runs.files import draft_file
from l2v.runs.run import BEST, LAST
from l2v.training.parts import join, read_all, remove_others


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint file appears whole or not at all, and is read without unpickling objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with draft_file(Path(path)) as draft:
                torch.save(checkpoint, draft)
        except RuntimeError as error:  # torch's zip writer turns a full disk into one
            raise L2VError(f"{path}: cannot be saved ({first_line(error)}); what was there before is kept") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_all(read_checkpoint(Path(path)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, by mapping its file; the tensors of one that was saved in parts are read when they are asked for.

    Raises:
        L2VError: it is damaged, or another program's.
    """
    if path.is_dir():
        raise L2VError(f"{path}: a checkpoint of DeepSpeed's own, which is not read: reading it can run code")
    try:
        _check(path, path.stat().st_size, path.stat().st_mtime_ns)
        return join(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path.parent)
    except Exception as error:  # torch raises many unrelated types for a damaged file
        raise L2VError(
            f"{path}: not a checkpoint that l2v wrote, or damaged ({first_line(error)}); {_remedy(path)}"
        ) from error


def _remedy(file: Path) -> str:
    best = file.with_name(BEST)
    if file.name == LAST and best.is_file():
        with contextlib.suppress(L2VError):
            return f"to go on from step {read_checkpoint(best)['global_step']}, copy {best} over it"
    return "put a copy in its place, or train anew"


@functools.lru_cache(maxsize=8)
def _check(file: Path, size: int, changed: int) -> None:
    """Compare every tensor with the checksum that torch wrote beside it, which loading does not; once a process.

    Raises:
        ValueError, BadZipFile: one differs, or the file is cut.
    """
    with zipfile.ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"the bits of {damaged.partition('/')[2]} have changed")


class SaveBest(Callback):
    """Saves ``best.ckpt``, of the validation with the lowest loss; before :class:`SaveLast`, whose file then knows it.

    Not Lightning's ``ModelCheckpoint``, which comes after all other callbacks wherever it stands.

    Args:
        file: to write.
        of: what the losses are of: those of a run that goes on with other data or another loss are not compared.
    """

    def __init__(self, file: Path, of: str) -> None:
        self.file, self.of = file, of
        self.loss: float | None = None
        """The lowest so far."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.global_step:
            return
        if "validation/loss" not in trainer.callback_metrics:
            raise L2VError("keep_checkpoints: the stage logs no validation/loss, so none is the best; set it to [last]")
        _check_finite(trainer)
        loss = float(trainer.callback_metrics["validation/loss"])
        if trainer.strategy.reduce_boolean_decision(self.loss is None or loss < self.loss):
            self.loss = loss
            trainer.save_checkpoint(self.file)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "of": self.of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss = state_dict["loss"] if state_dict.get("of", self.of) == self.of else None


def _check_finite(trainer: L.Trainer) -> None:
    """Stop a training that has diverged, before its weights take the place of what was saved.

    Raises:
        Diverged: the validation's loss is no number.
    """
    loss = float(trainer.callback_metrics.get("validation/loss", 0.0))
    if not math.isfinite(loss):
        raise Diverged(
            f"validation/loss is {loss} at step {trainer.global_step}: the training has diverged; nothing since the "
            "validation before is saved. Lower stage.learning_rate, or set trainer.gradient_clip_val"
        )


class SaveLast(Callback):
    """Saves ``last.ckpt`` at every validation and when training ends or is stopped."""

    def __init__(self, file: Path, on_save: Callable[[int], None]) -> None:
        self.file, self.on_save = file, on_save
        self._step = -1
        """Of the last save."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.global_step:
            _check_finite(trainer)
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._step:  # Lightning counts a batch twice that is saved after a validation, too
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._step = trainer.global_step
        trainer.save_checkpoint(self.file)
        if trainer.is_global_zero:
            self.on_save(trainer.global_step)


def remove_checkpoint(file: Path) -> None:
    """Remove a checkpoint, and the parts that belong to it."""
    file.unlink(missing_ok=True)
    remove_others(file, None)


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trainable weights in a checkpoint."""
    return read_all(read_checkpoint(checkpoint)["state_dict"])
