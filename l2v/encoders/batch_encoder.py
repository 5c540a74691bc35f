"""Vectors for those who have a pipeline of batches, as of Ray Data or datasets."""

from collections.abc import Mapping, Sequence
from typing import Any

from l2v.encoders.load import load_encoder
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings


class BatchEncoder:
    """Adds the vectors of texts to batches of columns: the class for ``ray.data.Dataset.map_batches``.

    The encoder is loaded once, where the class is instantiated: with Ray Data, in each actor. docs/encode.md has an
    example of it. ``datasets.Dataset.map(..., batched=True)`` takes an instance as well.

    Example:
        >>> from l2v import BatchEncoder, EncoderSettings
        >>> add_vectors = BatchEncoder(EncoderSettings("model"), column="title", normalize=True)
        >>> batch = add_vectors({"title": ["A dog barks.", "Stocks fell."], "id": [1, 2]})
        >>> sorted(batch), batch["vector"].shape
        (['id', 'title', 'vector'], (2, 32))

    Args:
        settings: the encoder.
        column: of the texts.
        vector_column: what is added, (batch, dimension) float32.
        instruction: put before every text.
        batch_size: texts that are computed at once, at most.
        normalize: scale vectors to length 1.
        truncate_dim: keep the first so many dimensions (before normalising).
        device: None: a GPU where this process sees one.

    Raises:
        L2VError: nothing there, or not a decoder, or its attention fails the proof.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        column: str = "text",
        vector_column: str = "vector",
        instruction: str | None = None,
        batch_size: int = 32,
        normalize: bool = False,
        truncate_dim: int | None = None,
        device: str | None = None,
    ) -> None:
        self.column, self.vector_column = column, vector_column
        self._encoder = load_encoder(settings, device=device)
        self._settings: dict[str, Any] = {
            "instruction": instruction,
            "batch_size": batch_size,
            "normalize": normalize,
            "truncate_dim": truncate_dim,
        }

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """The batch with a column more.

        Args:
            batch: name -> values of each column, as arrays of numpy (``batch_format="numpy"``) or lists.

        Raises:
            L2VError: there is no such column, or a value of it is no text.
        """
        if not isinstance(batch, Mapping):  # datasets hands over one that reads columns when they are asked for
            raise L2VError(
                f"batch_format: expected numpy, whose batches are dictionaries, found {type(batch).__name__}"
            )
        if self.column not in batch:
            raise L2VError(f"column={self.column}: not in the batch, which has {', '.join(batch)}")
        return {**batch, self.vector_column: self._encoder.encode(list(batch[self.column]), **self._settings)}
