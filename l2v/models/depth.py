"""The first layers of a decoder, with its final norm after them: a shallower encoder.

Of a decoder's layers the last ones predict words and matter least for a vector: 30% fewer cost next to nothing after
supervised training (Thennal, Fischer and Biemann, arXiv 2410.14578).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig

from l2v.errors import L2VError
from l2v.models.bidirectional import decoder_layers

if TYPE_CHECKING:
    from l2v.models.backbone import Backbone


def number_of_layers(wanted: int | float, depth: int, override: str = "layers") -> int:
    """How many layers a model keeps of those that it has.

    Args:
        wanted: their number, as an int, or the share of the model's, as a float: 0.7 of 30 layers are 21.
        depth: layers that the model has.
        override: what names ``wanted`` in an error.

    Raises:
        L2VError: it has not so many, or none would be left.
    """
    check_layers(override, wanted)
    count = max(1, round(wanted * depth)) if isinstance(wanted, float) else wanted
    if count > depth:
        raise L2VError(f"{override}={wanted}: the model has {depth} layers; expected 1 to {depth}, or a share of them")
    return count


def check_layers(override: str, wanted: int | float | None) -> None:
    """Raise an L2VError unless a setting is a number of layers, a share of them, or None."""
    is_number = type(wanted) is int and wanted >= 1
    is_share = type(wanted) is float and 0 < wanted <= 1
    if wanted is not None and not is_number and not is_share:
        raise L2VError(f"{override}={wanted}: expected a number of layers, as 21, or a share of them, as 0.7")


def depth_of(config: PretrainedConfig) -> int:
    """Layers of a decoder."""
    return int(config.get_text_config().num_hidden_layers)


def cut(config: PretrainedConfig, layers: int | float | None) -> PretrainedConfig:
    """The config of a model with its first so many layers, or such a share of them; None: all.

    Raises:
        L2VError: the model has not so many.
    """
    if layers is None:
        return config
    return with_layers(config, number_of_layers(layers, depth_of(config), "model.layers"))


def with_layers(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """The config of a model with the first so many layers."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    layers = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if _is_one_a_layer(name, value, layers):
            setattr(text, name, value[:count])
    if shared := getattr(text, "num_kv_shared_layers", 0):  # the last ones, which take keys from those before them
        text.num_kv_shared_layers = max(0, shared - (layers - count))
    text.num_hidden_layers = count
    return short


def _is_one_a_layer(name: str, value: object, layers: int) -> bool:
    """Whether a setting is a list of the layers' kinds; multipliers and special tokens may be as many by chance."""
    return (
        isinstance(value, list)
        and len(value) == layers
        and not name.endswith("token_id")
        and not any(isinstance(one, float) for one in value)
    )


def states_of_depths(
    backbone: "Backbone",
    layers: Sequence[int],
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"],
    position_ids: Int[Tensor, "batch length"] | None = None,
) -> list[Float[Tensor, "batch length hidden"]]:
    """Token states of a decoder with so many of its layers, and of the whole one, by one forward pass.

    What stands behind the last layer (the final norm, a projection) is found by watching the decoder run, and put
    behind each of the others; :func:`prove_depths` shows that this is all.

    Args:
        backbone: with whole weights: what stands behind the layers is called outside of the decoder's forward pass.
        layers: numbers of layers that a cut decoder has, from 1.
        input_ids: token ids.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: as of :meth:`~l2v.models.backbone.Backbone.forward`.
    """
    decoder = backbone.decoder
    stack = decoder_layers(decoder)
    place = next(name for name, module in decoder.named_modules() if module is stack)
    found: dict[int, Tensor] = {}
    behind: list[nn.Module] = []

    def keep(number: int) -> RemovableHandle:
        def hook(_module: nn.Module, _given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found[number] = output[0] if isinstance(output, tuple) else output

        return stack[number - 1].register_forward_hook(hook)

    def watch(module: nn.Module, given: tuple[object, ...], _output: object) -> None:
        if len(stack) in found and len(given) == 1 and isinstance(given[0], Tensor):
            behind.append(module)

    hooks = [keep(number) for number in {*layers, len(stack)}]
    for name, module in decoder.named_modules():
        holds, is_held = f"{place}.".startswith(f"{name}."), f"{name}.".startswith(f"{place}.")
        if name and not holds and not is_held:
            hooks.append(module.register_forward_hook(watch))
    try:
        whole = backbone(input_ids, attention_mask, position_ids)
    finally:
        for hook in hooks:
            hook.remove()
    states = []
    for number in layers:
        value = found[number]
        for module in behind:
            value = module(value)
        states.append(value)
    return [*states, whole]


@torch.no_grad()
def prove_depths(backbone: "Backbone") -> None:
    """Run a few tokens: what was found behind the last layer makes the decoder's own states of what that layer gives.

    Raises:
        L2VError: it does not, so that nobody could say what a cut decoder gives.
    """
    ids = torch.arange(4, device=next(backbone.parameters()).device)[None]
    last, whole = states_of_depths(backbone, [len(decoder_layers(backbone.decoder))], ids, torch.ones_like(ids))
    if last.shape != whole.shape or not torch.allclose(last.float(), whole.float(), rtol=1e-2, atol=1e-3):
        raise L2VError(
            f"what {type(backbone.decoder).__name__} does after its last layer cannot be told, so that its states at "
            "other depths are not known; set stage.layers=[]"
        )
