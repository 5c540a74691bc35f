"""What an evaluation needs of an encoder, whichever library it is of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.encoders.encoder import Encoder


class TextEncoder(Protocol):
    """Texts to vectors."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of a text, instruction included; longer ones are cut."""
        ...

    def encode(
        self,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        batch_size: int = 32,
        normalize: bool = False,
        show_progress_bar: bool = False,
    ) -> NDArray[np.float32]:
        """Vectors (texts, dimension), in the order of ``texts``; of length 1 where ``normalize``.

        ``instruction`` is put before every text.
        """
        ...

    def similarity(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Similarity (rows of ``a``, rows of ``b``)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the files of its results say of it, as ``attention`` and ``pooling``."""
        ...


def with_backbone(encoder: TextEncoder, wanted_by: str) -> "Encoder":
    """The encoder as one of l2v, whose model can be looked into.

    Raises:
        L2VError: it is one of another library; ``wanted_by`` says what cannot be had.
    """
    if getattr(encoder, "backbone", None) is None:
        raise L2VError(
            f"{wanted_by}: needs a model that l2v has loaded, found {type(encoder).__name__}, which has vectors only; "
            "leave the task out by '~evaluation.tasks.<its key>', or name another encoder="
        )
    return cast("Encoder", encoder)
