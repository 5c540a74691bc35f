"""l2v: any decoder-only LLM as a text encoder (LLM2Vec, arXiv 2404.05961)."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2v.encoders.encoder import Encoder

__all__ = ["Encoder"]

# PEFT imports bitsandbytes wherever it is installed, and that reports the CPU kernels it lacks
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import the encoder, and torch with it, when it is first used."""
    if name in _MODULES:
        with level_of("bitsandbytes"):  # PEFT imports it, and it reports the CPU kernels that it lacks
            return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'l2v' has no attribute {name!r}")
