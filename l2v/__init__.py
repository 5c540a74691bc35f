"""l2v: any decoder-only LLM as a text encoder (LLM2Vec, arXiv 2404.05961).

These are the names that users import; docs/api.md says how their page is made.
"""

import importlib
from typing import TYPE_CHECKING, Any

from l2v.process import level_of

if TYPE_CHECKING:
    from l2v.data.texts import FileTexts
    from l2v.embedding import read_vectors
    from l2v.encoders.batch_encoder import BatchEncoder
    from l2v.encoders.encoder import Encoder
    from l2v.encoders.load import load_encoder
    from l2v.errors import L2VError
    from l2v.evaluation import Task
    from l2v.models.backbone import Backbone
    from l2v.models.settings import EncoderSettings
    from l2v.pooling import Pooling
    from l2v.runs.run import Run
    from l2v.text.prompts import Prompt

__all__ = [
    "Backbone",
    "BatchEncoder",
    "Encoder",
    "EncoderSettings",
    "FileTexts",
    "L2VError",
    "Pooling",
    "Prompt",
    "Run",
    "Task",
    "load_encoder",
    "read_vectors",
]

_MODULES = {
    "Backbone": "l2v.models.backbone",
    "BatchEncoder": "l2v.encoders.batch_encoder",
    "Encoder": "l2v.encoders.encoder",
    "EncoderSettings": "l2v.models.settings",
    "FileTexts": "l2v.data.texts",
    "L2VError": "l2v.errors",
    "Pooling": "l2v.pooling",
    "Prompt": "l2v.text.prompts",
    "Run": "l2v.runs.run",
    "Task": "l2v.evaluation",
    "load_encoder": "l2v.encoders.load",
    "read_vectors": "l2v.embedding",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and torch with it, when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'l2v' has no attribute {name!r}")
    with level_of("bitsandbytes"):  # PEFT imports it, and it reports the CPU kernels that it lacks
        value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
