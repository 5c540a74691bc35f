"""A tall model planned by short ones: layers are alike, so what they take is straight in their number."""

import copy
import dataclasses
from functools import partial
from typing import Any

from l2v.models.depth import depth_of, with_layers
from l2v.planning.measure import Needs
from l2v.planning.setup import Setup
from l2v.planning.zero import needs_of
from l2v.stages.supervised import Supervised

_SHORT = 3
"""Layers of the shortest one, at least: with FSDP2 the next layer is gathered while one runs."""
_CLOSE = 0.01
"""Of the memory: how far from a straight line a third one may lie."""


def quick_needs(setup: Setup) -> Needs:
    """What :func:`~l2v.planning.zero.needs_of` finds, from models of a few layers; of those that are short, itself.

    Raises:
        L2VError: parts that do not go together.
    """
    layers = depth_of(setup.config)
    period = _period(setup.config.get_text_config())
    stage, shortest = copy.copy(setup.stage), _SHORT
    if isinstance(stage, Supervised) and stage.layers:
        # short models have not all of these; where they lie changes little
        stage.layers = tuple(range(1, len(stage.layers) + 1))
        shortest = max(_SHORT, len(stage.layers) + 1)
    short = period * -(-shortest // period)

    def of(count: int) -> Needs:
        return needs_of(dataclasses.replace(setup, config=with_layers(setup.config, count), stage=stage))

    if layers < 4 * short:
        return needs_of(setup)
    low, high = of(short), of(2 * short)
    for count in range(3 * short, layers - short + 1, short):
        # of the shortest ones the most may lie at another moment of the step: in the optimizer, say, and not at the
        # end of the forward pass; what they take is straight once it is the same moment
        next_one = of(count)
        line = partial(_needs_at, low, high, count - 2 * short, count - short)
        if _are_close(line(count), next_one):
            return line(layers)
        low, high = high, next_one
    return needs_of(setup)


def _needs_at(low: Needs, high: Needs, fewer: int, more: int, layers: int) -> Needs:
    """Of so many layers, on the straight line through what a model of ``fewer`` takes and one of ``more``."""
    steps = (layers - fewer) / (more - fewer)
    return Needs(**{name: _at(value, vars(high)[name], steps) for name, value in vars(low).items()})


def _are_close(expected: Needs, found: Needs) -> bool:
    most = _CLOSE * sum(found.memory.values())
    kinds = all(abs(expected.memory[kind] - size) <= most for kind, size in found.memory.items())
    return kinds and abs(expected.loading - found.loading) <= _CLOSE * found.loading


def _period(text: Any) -> int:
    """After how many layers their kinds come again; all of them where they do not."""
    layers = text.num_hidden_layers
    kinds = [value for value in vars(text).values() if isinstance(value, list) and len(value) == layers]
    for period in range(1, layers):
        if all(one[:-period] == one[period:] for one in kinds):
            return period
    return layers


def _at(low: Any, high: Any, steps: float) -> Any:
    if isinstance(low, dict):
        return {key: _at(value, high[key], steps) for key, value in low.items()}
    return type(low)(low + (high - low) * steps)
