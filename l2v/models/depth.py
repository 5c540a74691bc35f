"""The first layers of a decoder, with its final norm after them: a shallower encoder.

Of a decoder's layers the last ones predict words and matter least for a vector: 30% fewer cost next to nothing after
supervised training (Thennal, Fischer and Biemann, arXiv 2410.14578).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from l2v.errors import L2VError
from l2v.models.bidirectional import decoder_layers


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


class FirstLayers:
    """What a decoder would give with fewer of its layers, from one forward pass of all of them.

    What stands behind the layers (the final norm, a projection) is found by watching the decoder run, and proven: put
    behind the last layer it gives the decoder's own states.

    Example:
        >>> from l2v import Backbone
        >>> from l2v.models.depth import FirstLayers
        >>> backbone = Backbone.load("model")
        >>> batch = backbone.tokenizer(["A dog barks."], return_tensors="pt")
        >>> states = FirstLayers(backbone.decoder).states(batch["input_ids"], batch["attention_mask"])
        >>> len(states), torch.equal(states[-1], backbone(batch["input_ids"], batch["attention_mask"]))
        (2, True)
    """

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder = decoder
        self.layers = decoder_layers(decoder)

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Of each number of layers, from 1 on: (batch, length, hidden).

        Raises:
            L2VError: what stands behind the layers cannot be told from here.
        """
        outputs: list[Tensor] = []
        behind: list[nn.Module] = []
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        around = {
            id(module) for module in self.decoder.modules() if any(one is self.layers for one in module.modules())
        }

        def layer_ran(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        def other_ran(module: nn.Module, inputs: Any, _output: Any) -> None:
            if len(outputs) == len(self.layers) and _is_tensor(inputs):
                behind.append(module)

        hooks = [layer.register_forward_hook(layer_ran) for layer in self.layers]
        hooks += [
            module.register_forward_hook(other_ran)
            for module in self.decoder.modules()
            if id(module) not in inside | around
        ]
        try:
            whole = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()

        def finished(states: Tensor) -> Tensor:
            for module in behind:
                states = module(states)
            return states

        found = [finished(states) for states in outputs]
        if len(found) != len(self.layers) or found[-1].shape != whole.shape or not torch.allclose(found[-1], whole):
            raise L2VError("what this decoder does after its layers cannot be told; its depth cannot be proposed")
        return found


def _is_tensor(inputs: Any) -> bool:
    return len(inputs) == 1 and isinstance(inputs[0], Tensor)
