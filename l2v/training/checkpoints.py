"""Checkpoints that appear whole or not at all, and are read without unpickling."""

import contextlib
import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from l2v.errors import L2VError, first_line
from l2v.runs.files import draft_file
from l2v.runs.run import BEST, LAST


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint file appears whole or not at all, and is read without unpickling objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with draft_file(Path(path)) as draft:
                torch.save(checkpoint, draft)
        except RuntimeError as error:  # torch's zip writer turns a full disk into one
            raise L2VError(f"{path}: cannot be saved ({first_line(error)}); what was there before is kept") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        file = Path(path)
        try:
            _check(file, file.stat().st_size, file.stat().st_mtime_ns)
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many unrelated types for a damaged file
            raise L2VError(
                f"{path}: not a checkpoint that l2v wrote, or damaged ({first_line(error)}); {self._remedy(file)}"
            ) from error

    def _remedy(self, file: Path) -> str:
        best = file.with_name(BEST)
        if file.name == LAST and best.is_file():
            with contextlib.suppress(L2VError):
                return f"to go on from step {self.load_checkpoint(best)['global_step']}, copy {best} over it"
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
