"""l2v: any decoder-only LLM as a text encoder (LLM2Vec, arXiv 2404.05961).

The names below are what users import; ``from l2v import Encoder`` is where most begin. Each is imported, and torch with
it, when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2v.data.texts import FileTexts
    from l2v.data.triplets.options import TripletMix
    from l2v.embedding.shards import read_vectors
    from l2v.encoders.encoder import Encoder
    from l2v.encoders.load import load_encoder
    from l2v.evaluation.task import Task
    from l2v.losses.contrastive import Contrastive
    from l2v.models.backbone import Backbone
    from l2v.models.settings import EncoderSettings
    from l2v.pooling.base import Pooling
    from l2v.runs.run import Run
    from l2v.text.prompts import Prompt

__all__ = [
    "Backbone",
    "Contrastive",
    "Encoder",
    "EncoderSettings",
    "FileTexts",
    "Pooling",
    "Prompt",
    "Run",
    "Task",
    "TripletMix",
    "load_encoder",
    "read_vectors",
]

_MODULES = {
    "Backbone": "l2v.models.backbone",
    "Contrastive": "l2v.losses.contrastive",
    "Encoder": "l2v.encoders.encoder",
    "EncoderSettings": "l2v.models.settings",
    "FileTexts": "l2v.data.texts",
    "Pooling": "l2v.pooling.base",
    "Prompt": "l2v.text.prompts",
    "Run": "l2v.runs.run",
    "Task": "l2v.evaluation.task",
    "TripletMix": "l2v.data.triplets.options",
    "load_encoder": "l2v.encoders.load",
    "read_vectors": "l2v.embedding.shards",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module 'l2v' has no attribute {name!r}")
    from l2v.process import level_of

    with level_of("bitsandbytes"):  # PEFT imports it, and it reports the CPU kernels that it lacks
        return getattr(importlib.import_module(_MODULES[name]), name)
