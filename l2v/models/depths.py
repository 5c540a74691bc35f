"""States of a decoder as if it ended after some layer: that layer's output, through the final norm."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from l2v.errors import L2VError
from l2v.models.bidirectional import decoder_layers

if TYPE_CHECKING:
    from l2v.models.backbone import Backbone


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm after the last layer: the last one that stands beside the list of layers.

    Raises:
        L2VError: there is none.
    """
    layers = decoder_layers(decoder)
    holder = next(module for module in decoder.modules() if any(child is layers for child in module.children()))
    norms = [child for child in holder.children() if "norm" in type(child).__name__.lower()]
    if not norms:
        raise L2VError(f"{type(holder).__name__} has no norm after its last layer; set stage.layers=[]")
    return norms[-1]


def states_of_depths(
    backbone: "Backbone",
    layers: Sequence[int],
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"],
    position_ids: Int[Tensor, "batch length"] | None = None,
) -> list[Float[Tensor, "batch length hidden"]]:
    """Token states of the decoder cut after each of these layers, and of the whole one, by one forward pass.

    Args:
        backbone: with whole weights: the final norm is called outside of the decoder's forward pass.
        layers: numbers of layers that a cut decoder has, from 1.
        input_ids: token ids.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: as of :meth:`~l2v.models.backbone.Backbone.forward`.
    """
    found: dict[int, Tensor] = {}

    def keep(number: int) -> RemovableHandle:
        def hook(module: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found[number] = output[0] if isinstance(output, tuple) else output

        return decoder_layers(backbone.decoder)[number - 1].register_forward_hook(hook)

    hooks = [keep(number) for number in layers]
    try:
        whole = backbone(input_ids, attention_mask, position_ids)
    finally:
        for hook in hooks:
            hook.remove()
    norm = final_norm(backbone.decoder)
    return [*(norm(found[number]) for number in layers), whole]


@torch.no_grad()
def prove_final_norm(backbone: "Backbone") -> None:
    """Run a few tokens: the final norm makes the decoder's states of what its last layer gives.

    Raises:
        L2VError: it does not, so that nobody could say what a cut decoder gives.
    """
    ids = torch.arange(4, device=next(backbone.parameters()).device)[None]
    last = len(decoder_layers(backbone.decoder))
    cut, whole = states_of_depths(backbone, [last], ids, torch.ones_like(ids))
    if not torch.allclose(cut.float(), whole.float(), rtol=1e-2, atol=1e-3):
        raise L2VError(
            f"stage.layers: the states of {type(backbone.decoder).__name__} are not its last layer's through "
            f"{type(final_norm(backbone.decoder)).__name__}, so it cannot be cut; set stage.layers=[]"
        )
