"""Causality, switched off in the two places where transformers decides it.

The mask that the model builds reads ``config.is_causal``, and the attention kernels read ``is_causal`` of the attention
module when there is no mask. Both are set here. Neither is trusted: see :mod:`l2v.models.proof`.
"""

import inspect
from collections import deque
from typing import Any, Literal, get_args

from torch import nn

from l2v.errors import L2VError

Attention = Literal["bidirectional", "causal"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)


CAUSAL_ALONE = ("stablelm", "nemotron")
"""Families that transformers' own classes leave causal under sdpa where a batch has no padding, whatever their config
says: they do not hand ``is_causal`` on to their layers."""


def set_attention(model: nn.Module, attention: Attention) -> None:
    """Make every layer of a transformers decoder look both ways, or back only.

    Written to ``config.is_causal`` too, so that a saved model is reloaded with the same attention by transformers,
    sentence-transformers and vLLM. Sliding-window layers become windowed on both sides: a token sees
    ``config.sliding_window`` tokens on each (with flash_attention_2, whose windows transformers sets, one fewer).
    """
    causal = attention == "causal"
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "model_type"):
            config.is_causal = causal
        if hasattr(module, "is_causal"):
            module.is_causal = causal  # type: ignore[assignment]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's list of layers: the module list nearest to the root."""
    queue: deque[nn.Module] = deque([model])
    while queue:
        module = queue.popleft()
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            return module
        queue.extend(module.children())
    raise L2VError(f"{type(model).__name__} has no list of layers; expected a decoder-only transformer")


def learned_positions(decoder: nn.Module) -> int | None:
    """How many positions a model has learned an embedding for; None where they are computed, as rotary ones are."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
            # OPT's begin at 2, and RoBERTa's after the padding token's
            skipped = getattr(module, "offset", 0) or (0 if module.padding_idx is None else module.padding_idx + 1)
            return module.num_embeddings - skipped
    return None


_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
"""What the families call their embeddings of positions."""


def has_alibi(config: Any) -> bool:
    """Whether attention is biased by a key's position (ALiBi), which is a distance under a causal mask only."""
    of_attention = getattr(config, "attn_config", None)  # MPT's
    return (
        config.model_type == "bloom"
        or getattr(config, "alibi", False) is True
        or getattr(of_attention, "alibi", False) is True
    )


def accepts_position_ids(model: nn.Module) -> bool:
    """Whether the decoder takes positions. BLOOM (ALiBi) and OPT derive them from the mask instead."""
    get_base_model = getattr(model, "get_base_model", None)  # of a PeftModel
    inner = get_base_model() if get_base_model else model
    return "position_ids" in inspect.signature(inner.forward).parameters
