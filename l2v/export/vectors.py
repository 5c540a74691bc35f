"""A few texts and their vectors beside an exported encoder, for whoever serves it to compare with."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json

VECTORS_FILE = "example_vectors.json"
TEXTS = (
    "A dog barks.",
    "The river rose over its banks after three days of rain, and the old mill by the bridge stood in the water.",
    "Wie spät ist es in Zürich?",
    "def mean(values): return sum(values) / len(values)",
    "An encoder gives a vector for a whole text. " * 6,
)
"""Short and long ones, in two languages and in code: what masks, pools or cuts otherwise shows in one of them."""


def write_vectors(encoder: Encoder, folder: Path) -> None:
    """Write the texts and their vectors, as the encoder gives them without an instruction."""
    vectors = encoder.encode(list(TEXTS))
    rows = [{"text": text, "vector": vector.tolist()} for text, vector in zip(TEXTS, vectors, strict=True)]
    write_json(folder / VECTORS_FILE, {"rows": rows})


def read_vectors_of(folder: Path) -> tuple[list[str], NDArray[np.float32]] | None:
    """The texts and their vectors (texts, dimension); None where the folder has none.

    Raises:
        L2VError: the file is none that was written by an export.
    """
    file = folder / VECTORS_FILE
    if not file.is_file():
        return None
    found: Any = read_json(file)
    try:
        rows = [(str(row["text"]), np.array(row["vector"], dtype=np.float32)) for row in found["rows"]]
        return [text for text, _ in rows], np.stack([vector for _, vector in rows])
    except (KeyError, TypeError, ValueError):
        raise L2VError(f"{file}: not the vectors of an export; export the run again") from None
