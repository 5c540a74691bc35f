"""What an actor of a Ray cluster does: it loads an encoder once, and makes vectors of texts, a shard at a time."""

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2v.embedding.batches import batches_of
from l2v.embedding.compression import Ranges, stored
from l2v.embedding.embed import check_dimension, narrowest, vectors_of
from l2v.embedding.inputs import Row
from l2v.embedding.job import Encoding
from l2v.encoders.finite import check_finite, check_stored
from l2v.encoders.load import load_encoder
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings
from l2v.process import set_up_process
from l2v.training.trainer import make_trainer, quiet_lightning


@dataclass
class ShardEncoder:
    """Vectors of shards, computed as ``engine=local`` does: the same batches, by the same trainer's precision.

    With ``encoding.workers`` it may be called from two threads: one tokenizes ahead while the other computes.
    """

    subject: EncoderSettings
    encoding: Encoding
    trainer: dict[str, Any]
    """Keyword arguments of ``lightning.Trainer`` for one device."""
    folder: Path
    """What a relative path is relative to, where this machine has such a folder."""
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)

    @quiet_lightning()
    def load(self) -> int:
        """Load the encoder, and return the length of a vector.

        Raises:
            L2VError: the encoder cannot be loaded here, or this machine has no such device.
        """
        with contextlib.suppress(FileNotFoundError):
            os.chdir(self.folder)
        set_up_process()
        running = make_trainer(self.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        self._precision, self._device = running.precision_plugin, running.strategy.root_device
        if self._precision.precision != self.trainer["precision"]:
            wanted, device = self.trainer["precision"], self._device.type
            raise L2VError(f"trainer.precision={wanted}: is {self._precision.precision} on a {device}; write that")
        self._encoder = load_encoder(self.subject, device=self._device)
        self._precision.convert_module(self._encoder.module).eval()
        if self.encoding.truncate_dim is not None:
            check_dimension(self.encoding.truncate_dim, self._encoder.dimension, self.subject)
        self._preparation = self._encoder.preparation(self.encoding.instruction)
        self._dimension = self.encoding.truncate_dim or self._encoder.dimension
        return self._dimension

    def ranges(self, texts: Sequence[str]) -> Ranges:
        """The ranges that texts give to int8."""
        return Ranges.of(self._vectors(texts))

    def shard(self, texts: Sequence[str], ranges: Ranges | None) -> NDArray[Any]:
        """(texts, width) vectors as a shard holds them.

        Raises:
            L2VError: a vector is not finite.
        """
        vectors, kind = self._vectors(texts), self.encoding.vector_dtype
        values = stored(vectors, kind, ranges)
        check_stored(values, vectors, f"vector_dtype={kind}")
        return values

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        chunk = [Row(text, ()) for text in texts]
        batches = list(batches_of(chunk, 0, self._preparation, self.encoding.batch_size))
        vectors = np.empty((len(texts), self._dimension), np.float32)
        with self._turn, torch.inference_mode(), self._precision.predict_step_context():
            for batch in batches:
                moved = {
                    name: value.to(self._device) if torch.is_tensor(value) else value
                    for name, value in batch.inputs.items()
                }
                vectors[batch.places] = vectors_of(self._encoder, self.encoding, moved).float().cpu().numpy()
        check_finite(vectors, narrowest(self._encoder, str(self._precision.precision)))
        return vectors
