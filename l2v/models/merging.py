"""Adapters merged into a decoder's weights in float32, one module at a time."""

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from l2v.kernels.memory import release_pages
from l2v.models.adapters import Saved, with_saved
from l2v.models.weights import cast_weights

_PLAIN = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
}
"""Settings of LoRA under which it adds to a weight what does not depend on this or any other weight."""
_ALONE = {"target_parameters", "use_dora"}
"""Those under which one adapter is merged module by module, but several are not merged at once."""
_INDEPENDENT = (True, False, "gaussian", "orthogonal")
"""Ways to begin LoRA that leave the weights under it as they are."""


class Unmerged:
    """What is still to be done to a decoder's weights: adapters to merge, and the dtype that the weights end in.

    :meth:`settle` does it for a part of the decoder, so that no more than one module is in float32, and a part can be
    given away before the next is begun. Each weight is rounded once, after the last adapter.

    Args:
        decoder: its weights may be of another dtype, as they lie in files. Adapters other than LoRA are merged at once,
            all weights in float32, for what they do to a weight may depend on others.
        head: the output head, which gets the dtype.
        folders: of adapters, in order.
        dtype: of the weights at the end.
        layers: how many the decoder has kept, where the adapters may be of more; None: as many as they are of.

    Raises:
        L2VError: an adapter does not fit.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        head: nn.Module | None,
        folders: Sequence[Path],
        dtype: torch.dtype,
        *,
        layers: int | None = None,
    ) -> None:
        self.dtype = dtype
        self._layers: dict[nn.Parameter, list[BaseTunerLayer]] = {}
        self._names: list[str] = []
        saved = [Saved.read(folder, layers) for folder in folders]
        if not _by_module([one.config for one in saved]):
            for one in saved:
                cast_weights(decoder.parameters(), torch.float32)
                with_saved(decoder, [one], trainable=False).merge_and_unload()
        elif saved:
            # its modules are others, its weights the same
            shadow = copy.deepcopy(decoder, {id(weight): weight for weight in decoder.parameters()})
            adapted = with_saved(shadow, saved, trainable=False)
            self._names = list(adapted.peft_config)
            for layer in _tuner_layers(adapted):
                for weight in layer.get_base_layer().parameters():
                    self._layers.setdefault(weight, []).append(layer)
        for weight in decoder.parameters():  # PEFT froze them
            weight.requires_grad_(weight.is_floating_point())
        self._weights = {*decoder.parameters(), *(head.parameters() if head is not None else ())}

    @contextlib.contextmanager
    def presented(self) -> Iterator[None]:
        """Meanwhile the weights look as they will be, of the dtype at the end, with nothing in them."""
        kept = {weight: weight.data for weight in self._weights}
        for weight, data in kept.items():
            dtype = self.dtype if data.is_floating_point() else data.dtype
            weight.data = torch.zeros((), dtype=dtype, device=data.device).expand(data.shape)
        try:
            yield
        finally:
            for weight, data in kept.items():
                weight.data = data

    def settle(self, part: nn.Module) -> None:
        """Merge and cast the weights in a part of the model; those of an adapter that it got since stay."""
        weights = [weight for weight in part.parameters() if weight in self._weights]
        for layer in dict.fromkeys(layer for weight in weights for layer in self._layers.pop(weight, [])):
            _merge(layer, self._names, self.dtype)
        cast_weights(weights, self.dtype)
        self._weights.difference_update(weights)  # a part that is split lets go of them


def merge_and_unload(adapted: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merge the adapter on a decoder into its weights, in float32, take it off, and give the weights a dtype."""
    if _by_module(list(adapted.peft_config.values())):
        for layer in _tuner_layers(adapted):
            _merge(layer, list(adapted.peft_config), dtype)
        decoder = adapted.unload()
    else:
        decoder = adapted.float().merge_and_unload()
    cast_weights(decoder.parameters(), dtype)
    return cast(PreTrainedModel, decoder)


def is_plain(config: PeftConfig, besides: Collection[str] = ()) -> bool:
    """Whether an adapter is LoRA that neither reads nor changes the weights that it is put on.

    Args:
        config: of the adapter.
        besides: settings that it may have all the same.
    """
    if type(config) is not LoraConfig or config.init_lora_weights not in _INDEPENDENT:
        return False
    plain = LoraConfig()
    names = {field.name for field in dataclasses.fields(LoraConfig)} - {"init_lora_weights", *_PLAIN, *besides}
    return all(getattr(config, name) == getattr(plain, name) for name in names)


def _by_module(configs: Sequence[PeftConfig]) -> bool:
    """Whether these adapters, one after the other, change each module by itself."""
    return all(is_plain(config, _ALONE if len(configs) == 1 else ()) for config in configs)


def _tuner_layers(adapted: PeftModel) -> Iterator[BaseTunerLayer]:
    return (module for module in adapted.modules() if isinstance(module, BaseTunerLayer))


def _merge(layer: BaseTunerLayer, names: list[str], dtype: torch.dtype) -> None:
    weights = list(layer.get_base_layer().parameters())
    # made before what is freed again, so that it leaves no holes in the heap
    ends = [torch.empty_like(weight.data, dtype=dtype) if dtype != torch.float32 else None for weight in weights]
    cast_weights(weights, torch.float32)
    layer.merge(adapter_names=names)
    for weight, end in zip(weights, ends, strict=True):
        if end is not None:
            merged = weight.data
            weight.data = end.copy_(merged)
            release_pages(merged)
