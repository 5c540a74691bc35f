"""Checkpoints that appear whole or not at all, and are read without unpickling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from l2v.errors import L2VError, first_line
from l2v.runs.files import draft_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint file appears whole or not at all, and is read without unpickling objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with draft_file(Path(path)) as draft:
                torch.save(checkpoint, draft)
        except RuntimeError as error:  # torch's zip writer turns a full disk into one
            raise L2VError(f"{path}: cannot be saved ({first_line(error)}); what was there before is kept") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many unrelated types for a damaged file
            raise L2VError(f"{path}: not a checkpoint that l2v wrote ({first_line(error)})") from error


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


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trainable weights in a checkpoint file, or in a folder that DeepSpeed wrote."""
    if checkpoint.is_dir():
        from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

        whole = checkpoint.with_suffix(".full")
        convert_zero_checkpoint_to_fp32_state_dict(checkpoint, whole)
        checkpoint = whole
    return AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
