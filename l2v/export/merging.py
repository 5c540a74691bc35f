"""Weights of several adapters, and of adapted and original decoders, put together."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from l2v.errors import L2VError
from l2v.runs.adapter_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from l2v.runs.files import read_json, write_json

Method = Literal["average", "slerp"]
_PARALLEL = 1 - 1e-9
"""A cosine beyond which an arc cannot be told from a line."""


@torch.no_grad()
def blend(weights: nn.Module, others: nn.Module, share: float, *, what: str, method: Method = "average") -> None:
    r"""``weights`` become a mixture of themselves and ``others``, in place and in their dtype.

    Args:
        weights: of a decoder.
        others: of a decoder of the same family.
        share: of the others, from 0 to 1.
        what: the others are, for an error.
        method: ``average``: (1 - share) * weights + share * others. ``slerp``: along the arc between the two tensors
            (Shoemake, 1985), :math:`\frac{\sin((1-s)\theta)}{\sin\theta} w + \frac{\sin(s\theta)}{\sin\theta} o` with
            their angle :math:`\theta`; along the line where they are nearly parallel.

    Raises:
        L2VError: the two have not the same parameters.
    """
    mine, other = dict(weights.named_parameters()), dict(others.named_parameters())
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in other.items()}:
        raise L2VError(f"{what}: their weights and the run's have not the same shapes")
    for name, parameter in mine.items():
        if method == "slerp":
            of_mine, of_other = _arc(parameter, other[name], share)
            parameter.mul_(of_mine).add_(other[name], alpha=of_other)
        else:
            parameter.lerp_(other[name], share)


def _arc(a: Tensor, b: Tensor, share: float) -> tuple[float, float]:
    """What to multiply the two by."""
    flat = a.flatten().double(), b.flatten().double()
    norms = (flat[0].norm() * flat[1].norm()).item()
    cosine = torch.dot(*flat).item() / norms if norms else 1.0
    if abs(cosine) > _PARALLEL:
        return 1 - share, share
    angle = math.acos(cosine)
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    **{key: (None, False) for key in ("use_dora", "modules_to_save", "layers_to_transform", "target_parameters")},
    **{key: (None, {}, False) for key in ("rank_pattern", "alpha_pattern", "layer_replication")},
    "bias": ("none",),
}
"""Settings of a LoRA adapter, with the values under which it is no more than two matrices a module."""


def stack_adapters(folders: Sequence[Path], target: Path) -> None:
    """Write LoRA adapters as one, which adds to the base what they add together.

    B1 A1 + B2 A2 = [B1 B2] [A1; A2]: the ranks add up, and each scale goes into its B. Exact but for the rounding.

    Args:
        folders: of adapters in PEFT's layout, in order. A single one is copied as it is.
        target: an existing folder.

    Raises:
        L2VError: an adapter is more than plain LoRA.
    """
    configs_of = [read_json(folder / ADAPTER_CONFIG) for folder in folders]
    weights_of = [load_file(folder / ADAPTER_WEIGHTS) for folder in folders]
    config, weights = configs_of[-1], weights_of[-1]
    if len(folders) > 1:
        for folder, one, tensors in zip(folders, configs_of, weights_of, strict=True):
            odd = [key for key, plain in _PLAIN_LORA.items() if one.get(key) not in (*plain, [])]
            odd += [key for key in tensors if not key.endswith((_LORA_A, _LORA_B))][:1]
            odd += ["a model with its output head"] if _tops(tensors).isdisjoint(_tops(weights)) else []
            if odd or not isinstance(one["target_modules"], list):
                what = odd[0] if odd else "target_modules"
                raise L2VError(
                    f"form=adapter: {folder} is more than plain LoRA ({what}), so the run's adapters do not add up to "
                    "one; choose form=merged"
                )
        weights = _stacked(weights_of, [one["lora_alpha"] / _divisor(one) for one in configs_of])
        rank = sum(one["r"] for one in configs_of)
        targets = sorted({name for one in configs_of for name in one["target_modules"]})
        config = {**config, "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": targets}
    save_file(weights, target / ADAPTER_WEIGHTS, {"format": "pt"})
    write_json(target / ADAPTER_CONFIG, {**config, "inference_mode": True})


def _tops(tensors: dict[str, Tensor]) -> set[str]:
    """The parts of a model that an adapter changes: layers, embed_tokens; or the whole decoder beside a head."""
    return {part for key in tensors for part in key.split(".")[2:3]}


def _divisor(config: dict[str, Any]) -> float:
    return config["r"] ** 0.5 if config.get("use_rslora") else config["r"]


def _stacked(adapters: list[dict[str, Tensor]], scales: list[float]) -> dict[str, Tensor]:
    """One adapter's tensors, in float32; a module that an adapter does not have gets zeros in its place."""
    ranks = [next(tensor.shape[0] for key, tensor in one.items() if key.endswith(_LORA_A)) for one in adapters]
    modules = {key.removesuffix(_LORA_A) for one in adapters for key in one if key.endswith(_LORA_A)}
    stacked = {}
    for module in modules:
        shapes = next((one[module + _LORA_A], one[module + _LORA_B]) for one in adapters if module + _LORA_A in one)
        inputs, outputs = shapes[0].shape[1], shapes[1].shape[0]
        a = [
            one.get(module + _LORA_A, torch.zeros(rank, inputs)).float()
            for one, rank in zip(adapters, ranks, strict=True)
        ]
        b = [
            one.get(module + _LORA_B, torch.zeros(outputs, rank)).float() * scale
            for one, rank, scale in zip(adapters, ranks, scales, strict=True)
        ]
        stacked[module + _LORA_A], stacked[module + _LORA_B] = torch.cat(a, dim=0), torch.cat(b, dim=1)
    return stacked
