"""Whether a stage fits, the largest passes that do, and what to change where it does not."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from l2v.errors import L2VError
from l2v.models.adapters import Lora
from l2v.planning.layers import quick_needs
from l2v.planning.measure import Needs
from l2v.planning.room import Room
from l2v.planning.setup import Setup
from l2v.progress import say
from l2v.stages.mntp import MNTP
from l2v.stages.stage import Stage
from l2v.stages.supervised import Supervised
from l2v.training.strategies import FullySharded

_TRIES = 4
"""Measurements of a search after its first two: memory is nearly straight in the number of tokens."""


@dataclass(frozen=True)
class Largest:
    """The most that fits."""

    setting: str
    """stage.micro_batch_tokens, or stage.batch_size where passes are refused."""
    value: int
    whole: bool = False
    """Whether the whole batch fits in one pass."""
    with_cache: bool = False
    """Whether it needs stage.grad_cache=true."""

    @property
    def overrides(self) -> str:
        return f"{self.setting}={self.value}" + (" stage.grad_cache=true" if self.with_cache else "")


def fits(needs: Needs, room: Room) -> bool:
    return needs.peak <= room.tensors


def largest(setup: Setup, room: Room) -> Largest | None:
    """The most tokens of a pass that fit; None: not even a row does.

    Where the strategy takes no passes it is the largest batch of a process.
    """
    passes = _takes_passes(setup)
    row, text = _row_tokens(setup), _text_tokens(setup)
    whole = setup.stage.batch_size * row

    def needs(units: int) -> Needs:
        return quick_needs(_with_pass(setup, units * text) if passes else _with_rows(setup, units))

    most = max(1, whole // text) if passes else 64 * setup.stage.batch_size
    found = _most_units(lambda units: needs(units).peak, room.tensors, most)
    if found is None:
        return None
    if not passes:
        return Largest("stage.batch_size", found)
    with_cache = not isinstance(setup.stage, MNTP)
    return Largest("stage.micro_batch_tokens", found * text, whole=found >= most, with_cache=with_cache)


def remedies(setup: Setup, room: Room) -> Iterator[tuple[str, Setup]]:
    """What may make a setup fit, the least costly first: overrides, and the setup with them."""
    model, stage = setup.model, setup.stage
    checkpointed = setup.with_model(dataclasses.replace(model, gradient_checkpointing=True))
    prefix = "" if model.gradient_checkpointing is True else "model.gradient_checkpointing=true "
    if prefix:
        yield prefix.strip(), checkpointed
    if _takes_passes(setup):
        found = largest(checkpointed, room)
        if found is not None:
            yield prefix + found.overrides, _with_pass(checkpointed, found.value, rows=stage.batch_size)
    elif (found := largest(checkpointed, room)) is not None and found.value < stage.batch_size:
        yield prefix + found.overrides, _with_rows(checkpointed, found.value)
    if setup.processes > 1 and setup.sharing in ("ddp", "zero2"):
        yield f"{prefix}trainer=fsdp", fully_sharded(checkpointed)
    if setup.adapter is None:
        yield f"{prefix}adapter=lora", dataclasses.replace(checkpointed, adapter=Lora())
    for devices, nodes in ((8, 1), (8, 2), (8, 4), (8, 8)):
        if devices * nodes > setup.processes and (shared := _shared(stage, devices * nodes, setup)) is not None:
            more = dataclasses.replace(fully_sharded(checkpointed), stage=shared, devices=devices, nodes=nodes)
            yield f"{prefix}trainer=fsdp trainer.devices={devices} trainer.num_nodes={nodes}", more


def _shared(stage: Stage, processes: int, setup: Setup) -> Stage | None:
    """The stage with its batch shared by so many processes; None: it cannot be."""
    stage = copy.copy(stage)
    try:
        stage.share_batch(processes, setup.trainer.get("accumulate_grad_batches", 1))
    except L2VError:
        return None
    return stage


def first_that_fits(setup: Setup, room: Room) -> str | None:
    """The overrides of the first remedy that suffices."""
    for overrides, changed in remedies(setup, room):
        say(f"trying {overrides}")
        if fits(quick_needs(changed), room):
            return overrides
    return None


def fully_sharded(setup: Setup) -> Setup:
    """The same by FSDP2."""
    return dataclasses.replace(setup, sharing="fsdp", strategy=FullySharded)


def _most_units(peak: Callable[[int], int], limit: int, most: int) -> int | None:
    """The largest number of at most ``most`` whose peak is within the limit; None: not even 1."""
    low, of_low = 1, peak(1)
    if of_low > limit:
        return None
    high = min(most, 4)
    of_high = peak(high) if high > 1 else of_low
    for _ in range(_TRIES):
        if of_high > limit:
            break
        low, of_low, before = high, of_high, (low, of_low)
        if low >= most:
            return most
        slope = (of_low - before[1]) / max(1, low - before[0])
        high = min(most, max(low + 1, low + int((limit - of_low) / slope) if slope > 0 else most))
        of_high = peak(high)
    for _ in range(_TRIES):
        if of_high <= limit or high - low <= 1:
            break
        share = (limit - of_low) / max(1, of_high - of_low)
        middle = min(high - 1, max(low + 1, low + int((high - low) * share * 0.99)))
        if (of_middle := peak(middle)) <= limit:
            low, of_low = middle, of_middle
            if high - low <= max(1, high // 50):
                break
        else:
            high, of_high = middle, of_middle
    return high if of_high <= limit else low


def _takes_passes(setup: Setup) -> bool:
    """Whether the stage runs in passes under this strategy."""
    stage = copy.copy(setup.stage)
    stage.micro_batch_tokens = _text_tokens(setup)
    try:
        stage.check(encoder=False, adapter=setup.adapter is not None, sharding=setup.sharding, sources=[])
    except L2VError:
        return False
    return True


def _text_tokens(setup: Setup) -> int:
    """Tokens of a row of a forward pass."""
    stage: Any = setup.stage
    if isinstance(stage, MNTP):
        return stage.block_length
    return min(setup.text_tokens or stage.max_length, stage.max_length)


def _row_tokens(setup: Setup) -> int:
    """Tokens of the larger of a batch's kinds of texts, of a row of it: two views, or the documents of a query."""
    stage: Any = setup.stage
    if isinstance(stage, MNTP):
        return _text_tokens(setup)
    return _text_tokens(setup) * (1 + stage.negatives if isinstance(stage, Supervised) else 2)


def _with_pass(setup: Setup, tokens: int, rows: int | None = None) -> Setup:
    """In passes of so many tokens, of a batch of ``rows``; None: of just enough for two passes, which tell all."""
    stage: Any = copy.copy(setup.stage)
    stage.micro_batch_tokens = tokens
    if not isinstance(stage, MNTP):
        stage.grad_cache = True
    stage.batch_size = rows or min(stage.batch_size, max(2, -(-2 * tokens // _row_tokens(setup))))
    return dataclasses.replace(setup, stage=stage)


def _with_rows(setup: Setup, rows: int) -> Setup:
    stage = copy.copy(setup.stage)
    stage.batch_size = max(rows, 2 if not isinstance(stage, MNTP) else 1)
    return dataclasses.replace(setup, stage=stage)
