"""A model's weights in the host's memory: mapped from their files, and changed one at a time."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from l2v.kernels.memory import release_pages
from l2v.runs.locations import Source, model_file

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_OTHERS = ("BOOL", "I16", "I32", "I64", "U8")
"""What safetensors may hold beside weights: counters and masks."""


def load_mapped(
    auto: Any, place: Source, config: PretrainedConfig, dtype: torch.dtype, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model as ``auto.from_pretrained`` loads it, but with weights in the dtype of their files, where that is one.

    Such weights are mapped: a page takes memory once it is read, processes share it, and the system can take it back.
    Buffers are those of a model of ``dtype``, as some are made in the dtype that the model is made in.

    Args:
        auto: ``AutoModel``, or another such class.
        place: the model.
        config: its config.
        dtype: of the weights where their files have several, are no safetensors, or are quantized.
        arguments: keyword arguments of ``from_pretrained``.

    Returns:
        the model, and what transformers says of its keys.
    """
    files = None if getattr(config, "quantization_config", None) else _stored_dtype(place)
    stored = files or dtype
    model, info = auto.from_pretrained(place.path, dtype=stored, output_loading_info=True, **arguments)
    if stored != dtype:
        _make_buffers(model, auto, dtype, arguments["trust_remote_code"])
    return model, info


def cast_weights(weights: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Change the dtype of weights, in place and one by one.

    A model's buffers stay as they are, as in ``from_pretrained(dtype=...)``: rotary frequencies in bfloat16 would
    misplace the tokens of a long text.
    """
    for parameter in weights:
        if parameter.is_floating_point() and parameter.dtype != dtype:
            before = parameter.data
            parameter.data = before.to(dtype)
            release_pages(before)


def _stored_dtype(place: Source) -> torch.dtype | None:
    """The dtype of all weights of a model's safetensors; None where they have several, or there are none."""
    if place.gguf_file:
        return None
    found: set[str] = set()
    for file in _files(place):
        with safe_open(file, framework="pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    floats = found - {*_OTHERS}
    return _FLOATS.get(floats.pop()) if len(floats) == 1 else None


def _files(place: Source) -> list[Path]:
    if whole := model_file(place, "model.safetensors"):
        return [whole]
    index = model_file(place, "model.safetensors.index.json")
    if index is None:
        return []
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [model_file(place, name) for name in names]
    return [file for file in files if file is not None]


def _make_buffers(model: PreTrainedModel, auto: Any, dtype: torch.dtype, trust_remote_code: bool) -> None:
    """Give a model the buffers that it would have, had it been loaded in ``dtype``."""
    with init_empty_weights(include_buffers=False):
        twin = auto.from_config(copy.deepcopy(model.config), dtype=dtype, trust_remote_code=trust_remote_code)
    model.config.dtype = dtype
    saved = model.state_dict().keys()
    own = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        module, _, last = name.rpartition(".")
        value = own[name].to(buffer.dtype) if name in saved else buffer
        model.get_submodule(module)._buffers[last] = value
