"""A tall model planned by two short ones: layers are alike, so what they take is straight in their number."""

import copy
import dataclasses
from typing import Any

from transformers import PretrainedConfig

from l2v.planning.measure import Needs
from l2v.planning.setup import Setup
from l2v.planning.zero import needs_of

_SHORT = 3
"""Layers of the shorter one, at least: with FSDP2 the next layer is gathered while one runs."""


def quick_needs(setup: Setup) -> Needs:
    """What :func:`~l2v.planning.zero.needs_of` finds, from models of a few layers; of those that are short, itself.

    Raises:
        L2VError: parts that do not go together.
    """
    layers = setup.config.get_text_config().num_hidden_layers
    period = _period(setup.config.get_text_config())
    short = period * -(-_SHORT // period)
    if layers < 3 * short:
        return needs_of(setup)
    low, high = (
        needs_of(dataclasses.replace(setup, config=with_layers(setup.config, count))) for count in (short, 2 * short)
    )
    return Needs(**{name: _at(value, vars(high)[name], short, layers) for name, value in vars(low).items()})


def with_layers(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """The config of a model with the first so many layers."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    layers = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:  # one a layer: their kinds
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return short


def _period(text: Any) -> int:
    """After how many layers their kinds come again; all of them where they do not."""
    layers = text.num_hidden_layers
    kinds = [value for value in vars(text).values() if isinstance(value, list) and len(value) == layers]
    for period in range(1, layers):
        if all(one[:-period] == one[period:] for one in kinds):
            return period
    return layers


def _at(low: Any, high: Any, short: int, layers: int) -> Any:
    if isinstance(low, dict):
        return {key: _at(value, high[key], short, layers) for key, value in low.items()}
    return type(low)(low + (high - low) * (layers - short) / short)
