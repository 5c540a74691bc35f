"""What ``encode`` takes: a text, texts, or (instruction, text) pairs; and how vectors are compared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from l2v.errors import L2VError

_Float = TypeVar("_Float", bound=np.floating[Any])

TextInput = str | Sequence[str] | Sequence[tuple[str, str]]


def split_pairs(texts: Sequence[Any], instruction: str | None) -> tuple[list[str], list[str | None]]:
    """Texts, and the instruction of each.

    Raises:
        L2VError: an entry is no text, or there are instructions of both kinds.
    """
    plain: list[str] = []
    instructions: list[str | None] = []
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
        raise L2VError(f"expected a text or texts, found {type(texts).__name__}")
    for row, item in enumerate(texts):
        if isinstance(item, (tuple, list)) and len(item) == 2:
            own, text = item
            if instruction is not None:
                raise L2VError("give an instruction for all texts or (instruction, text) pairs, not both")
        else:
            own, text = instruction, item
        if not isinstance(text, str):
            raise L2VError(f"text {row} is {type(text).__name__}, expected str or an (instruction, text) pair")
        if not (own is None or isinstance(own, str)):
            raise L2VError(f"the instruction of text {row} is {type(own).__name__}, expected str or None")
        plain.append(text)
        instructions.append(own)
    return plain, instructions


def check_options(batch_size: int, truncate_dim: int | None, dimension: int) -> None:
    """Raise an L2VError where an option of ``encode`` is out of range; ``dimension`` is that of whole vectors."""
    if batch_size < 1:
        raise L2VError(f"batch_size must be at least 1, got {batch_size}")
    if truncate_dim is not None and not 1 <= truncate_dim <= dimension:
        raise L2VError(f"truncate_dim must be in 1..{dimension}, got {truncate_dim}")


def unit(vectors: NDArray[_Float]) -> NDArray[_Float]:
    """Vectors (texts, dimension) at length 1; a vector of zeros stays one."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of every row of ``a`` with every row of ``b``."""
    return unit(np.atleast_2d(a)) @ unit(np.atleast_2d(b)).T
