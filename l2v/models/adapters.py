"""Adapters on a decoder: new ones, saved ones, and what training changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from l2v.errors import L2VError, first_line
from l2v.kernels.linear import speed_up
from l2v.models.loading import quiet
from l2v.runs.adapter_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS


@dataclass(frozen=True)
class Lora:
    """LoRA settings (defaults: the paper, appendix D.1)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    """Probability."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or all-linear: every linear layer of the decoder (q, k, v, o, gate, up, down in Llama)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise L2VError(f"adapter.lora.rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise L2VError(f"adapter.lora.dropout must be in [0, 1), got {self.dropout}")


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def load_adapter(decoder: PreTrainedModel, folder: Path, trainable: bool) -> PeftModel:
    file = folder / ADAPTER_WEIGHTS
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).exists():
            raise L2VError(f"{folder}: no {name}, so it holds no adapter")
    try:
        config, weights = LoraConfig.from_pretrained(str(folder)), load_file(file)
    except (SafetensorError, ValueError, TypeError) as error:
        raise L2VError(f"{folder}: the adapter is damaged ({first_line(error)})") from None
    config.inference_mode = not trainable
    config.base_model_name_or_path = None  # where it was trained is in the lineage; PEFT warns of another path
    try:
        with quiet():
            adapted = get_peft_model(decoder, config)
    except ValueError as error:
        raise L2VError(f"{folder}: the adapter does not fit {decoder.config.model_type}: {error}") from None
    expected = {k: v.shape for k, v in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()}
    found = {k: v.shape for k, v in weights.items()}
    if expected != found:
        odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise L2VError(
            f"{folder}: the adapter does not fit the base model: {len(odd)} of {len(expected | found)} tensors are "
            f"missing, unexpected or of another shape, e.g. {odd[0]} (expected "
            f"{_shape(expected.get(odd[0]))}, found {_shape(found.get(odd[0]))})"
        )
    set_peft_model_state_dict(adapted, weights)
    speed_up(adapted)
    return cast(PeftModel, adapted.train(decoder.training))  # PEFT puts new modules into training mode


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
