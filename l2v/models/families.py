"""Model types of transformers, as tiny random models: what each needs beside the common settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from l2v.errors import L2VError
from l2v.models.bidirectional import set_attention
from l2v.models.settings import AttnImplementation

_WINDOW = 3
"""Tokens to each side, in families with sliding windows: shorter than every text here."""
_TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # ten times the usual: a token must be seen to move the others
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """A model type of transformers, and what its tiny model needs beside the common settings."""

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """None takes a common setting out."""
    variant: str = ""
    partial: bool = False
    """``model.partial=true``: accept layers that stay causal."""

    @property
    def name(self) -> str:
        return f"{self.model_type}, {self.variant}" if self.variant else self.model_type


def _windowed(model_type: str, **settings: Any) -> Family:
    """Sliding windows in every layer, in a family that has no ``layer_types``."""
    return Family(model_type, {"sliding_window": _WINDOW, **settings}, "sliding window")


def _mixed(model_type: str, **settings: Any) -> Family:
    """One layer with a sliding window, one without."""
    types = ["sliding_attention", "full_attention"]
    return Family(model_type, {"layer_types": types, "sliding_window": _WINDOW, **settings}, "sliding window")


_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
_STATE_SPACE = {"state_size": 4}
_HYBRID = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

FAMILIES: tuple[Family, ...] = (
    Family("llama"),
    Family("mistral", {"sliding_window": None}),
    _windowed("mistral"),
    Family("ministral3", {"sliding_window": None}),
    _mixed("ministral"),
    Family("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    Family("qwen2"),
    _mixed("qwen2", use_sliding_window=True, max_window_layers=0),
    Family("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    Family("qwen3"),
    _mixed("qwen3", use_sliding_window=True, max_window_layers=0),
    Family("qwen3_moe", _EXPERTS),
    Family("gemma"),
    _mixed("gemma2"),
    _mixed("gemma3_text"),
    _mixed("gemma4_text", global_head_dim=8, hidden_size_per_layer_input=0, num_kv_shared_layers=0),
    Family("phi"),
    Family("phi3", {"sliding_window": None}),
    _windowed("phi3"),
    Family("olmo"),
    Family("olmo2"),
    _mixed("olmo3"),
    Family("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    Family("smollm3"),
    Family("granite"),
    Family("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("starcoder2", {"sliding_window": None}),
    _windowed("starcoder2"),
    Family("gpt_neox"),
    Family("gpt2"),
    Family("gpt_bigcode"),
    Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Family("falcon", {"head_dim": None}),
    Family("bloom"),
    Family("mpt"),
    Family("cohere"),
    _mixed("cohere2"),
    Family("glm"),
    Family("glm4"),
    _mixed("gpt_oss", num_local_experts=4, num_experts_per_tok=2),
    Family("stablelm"),
    Family("nemotron"),
    _mixed("exaone4"),
    Family("seed_oss"),
    Family("helium"),
    Family("arcee"),
    Family("ernie4_5"),
    Family("hunyuan_v1_dense"),
    Family("nanochat"),
    Family("falcon_h1", _HYBRID),
    Family("qwen3_5_text", _LINEAR),
    Family("qwen3_5_text", _LINEAR, "partial", partial=True),
    Family("qwen3_next", {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16}),
    Family("qwen3_next", {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16}, "partial", partial=True),
    Family("lfm2", _CONVOLUTION),
    Family("lfm2", _CONVOLUTION, "partial", partial=True),
    Family("mamba", _STATE_SPACE),
    Family("mamba", _STATE_SPACE, "partial", partial=True),
)


def tiny_model(family: Family, implementation: AttnImplementation) -> PreTrainedModel:
    """The same weights at every call."""
    if family.model_type not in CONFIG_MAPPING:
        raise L2VError(f"{family.model_type}: transformers {version('transformers')} has no such model type")
    settings = {**_TINY, **family.settings}
    # a window of None says that there is none; other settings of None are left to the config's class
    kept = {k: v for k, v in settings.items() if v is not None or k in ("sliding_window", "pad_token_id")}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family.model_type, **kept)).eval()
    set_attention(model, "bidirectional")
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError):
        raise L2VError(f"{family.model_type}: transformers offers no {implementation} for it") from None
    if implementation != "eager" and model.config._attn_implementation == "eager":
        raise L2VError(f"{family.model_type}: has eager attention only")
    return model.to("cuda", torch.bfloat16) if implementation == "flash_attention_2" else model
