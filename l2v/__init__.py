"""l2v: any decoder-only LLM as a text encoder (LLM2Vec, arXiv 2404.05961)."""

import importlib
from typing import TYPE_CHECKING, Any

from l2v.process import level_of

if TYPE_CHECKING:
    from l2v.encoders.encoder import Encoder

__all__ = ["Encoder"]

_MODULES = {"Encoder": "l2v.encoders.encoder"}


def __getattr__(name: str) -> Any:
    """Import a public name, and torch with it, when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'l2v' has no attribute {name!r}")
    with level_of("bitsandbytes"):  # PEFT imports it, and it reports the CPU kernels that it lacks
        return getattr(importlib.import_module(_MODULES[name]), name)
