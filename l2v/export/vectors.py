"""A few texts and their vectors beside an exported encoder, for whoever serves it to compare with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings
from l2v.runs.files import read_json, write_json
from l2v.runs.locations import locate, model_file

VECTORS_FILE = "example_vectors.json"
TEXTS = (
    "A dog barks.",
    "The river rose over its banks after three days of rain, and the old mill by the bridge stood in the water.",
    "Wie spät ist es in Zürich?",
    "def mean(values): return sum(values) / len(values)",
    "An encoder gives a vector for a whole text. " * 6,
)
"""Short and long ones, in two languages and in code: what masks, pools or cuts otherwise shows in one of them."""
TOLERANCE, _OF_16_BITS = 0.001, 0.02
"""1 - cosine of two vectors of a text that counts as equal; bfloat16 changes those of deep models by up to 0.005."""


def write_vectors(encoder: Encoder, folder: Path) -> None:
    """Write the texts and their vectors, as the encoder gives them without an instruction."""
    vectors = encoder.encode(list(TEXTS))
    rows = [{"text": text, "vector": vector.tolist()} for text, vector in zip(TEXTS, vectors, strict=True)]
    write_json(folder / VECTORS_FILE, {"dtype": str(encoder.dtype).removeprefix("torch."), "rows": rows})


@dataclass(frozen=True)
class Carried:
    """What an export carries."""

    texts: list[str]
    vectors: NDArray[np.float32]
    """(texts, dimension)"""
    tolerance: float
    """1 - cosine of a text's two vectors that rounding explains, in the dtype that these were computed in."""


def read_vectors_of(settings: EncoderSettings) -> Carried | None:
    """The texts of an exported encoder, a folder or on the hub, and their vectors; None where it has none.

    Raises:
        L2VError: the file is none that was written by an export.
    """
    file: Path | None = settings.folder / VECTORS_FILE
    if not settings.folder.is_dir():
        file = model_file(locate(settings.source, settings.revision, "encoder"), VECTORS_FILE, "encoder")
    if file is None or not file.is_file():
        return None
    found: Any = read_json(file)
    try:
        rows = [(str(row["text"]), np.array(row["vector"], dtype=np.float32)) for row in found["rows"]]
        tolerance = TOLERANCE if found.get("dtype", "float32") == "float32" else _OF_16_BITS
        return Carried([text for text, _ in rows], np.stack([vector for _, vector in rows]), tolerance)
    except (KeyError, TypeError, ValueError):
        raise L2VError(f"{file}: not the vectors of an export; export the run again") from None
