"""The first layers of a decoder, with its final norm after them: a shallower encoder.

Of a decoder's layers the last ones predict words and matter least for a vector: 30% fewer cost next to nothing after
supervised training (Thennal, Fischer and Biemann, arXiv 2410.14578).
"""

import copy

from transformers import PretrainedConfig

from l2v.errors import L2VError


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
