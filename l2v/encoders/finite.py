"""Vectors are numbers: what is infinite or none is told where it is seen first, with the dtype to change."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2v.errors import L2VError

_LARGEST = f"{np.finfo(np.float16).max:,.0f}"


def check_finite(vectors: NDArray[Any], computed_in: torch.dtype | None) -> None:
    """Raise an L2VError where a vector is not finite.

    Args:
        vectors: (rows, dimension).
        computed_in: the narrowest dtype on the way, which decides what is advised; None: not known.
    """
    if np.isfinite(vectors).all():
        return
    lost = int((~np.isfinite(vectors).all(axis=1)).sum())
    told = "a vector is not finite" if lost == 1 else f"{lost} vectors are not finite"
    if computed_in in (torch.float16, None):
        raise L2VError(f"{told}; use dtype=float32 or dtype=bfloat16: float16 ends at {_LARGEST}")
    name = str(computed_in).removeprefix("torch.")
    raise L2VError(f"{told}, in dtype={name}: the model's weights or states are not; was its training broken?")


def check_stored(values: NDArray[Any], vectors: NDArray[np.float32], setting: str) -> None:
    """Raise an L2VError where finite vectors are stored as what is not finite.

    Args:
        values: what is stored, (rows, dimension).
        vectors: that it stands for.
        setting: that chose how, e.g. vector_dtype=float16.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        largest = f"{np.abs(vectors).max():.4g}"
        raise L2VError(
            f"{setting}: ends at {_LARGEST}, and a vector has {largest}; use vector_dtype=float32, or normalize=true"
        )
