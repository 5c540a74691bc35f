"""l2v: any decoder-only LLM as a text encoder (LLM2Vec, arXiv 2404.05961)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2v.encoder import Encoder

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    """Import the encoder, and torch with it, when it is first used."""
    if name == "Encoder":
        from l2v.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'l2v' has no attribute {name!r}")
