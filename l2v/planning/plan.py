"""A plan: what a stage takes of GPUs, of the machine and of disks, and how long it will run."""

from dataclasses import asdict, dataclass
from typing import Any

from l2v.errors import L2VError
from l2v.planning.fit import Largest, first_that_fits, fits, largest
from l2v.planning.layers import quick_needs
from l2v.planning.measure import Needs
from l2v.planning.room import GIB, Room
from l2v.planning.setup import Setup
from l2v.progress import say

_LIBRARIES = GIB
"""Of a process without a model: torch, transformers and Lightning."""
_LOADING = 1.2
"""Of the weights' size: the host's memory of a process while it loads, merges and exports."""
_CHECKPOINTS = 2
"""best.ckpt and last.ckpt."""


@dataclass(frozen=True)
class Plan:
    """What a stage takes; bytes unless said otherwise."""

    needs: Needs
    room: Room
    fits: bool
    largest: Largest | None
    """None: not looked for, or nothing fits."""
    host: int
    """Of a machine, for all its processes."""
    checkpoints: int
    encoder: int
    """The folder of merged weights, which an adapter takes a small part of."""
    seconds: float | None
    """Of an optimizer step; None: the device's rate is not known."""

    @property
    def peak_gib(self) -> float:
        """Of a device, with what is kept free."""
        return self.needs.peak * (1 + self.room.fragmentation) / GIB + self.room.reserve_gib

    @property
    def steps_per_hour(self) -> float | None:
        return None if not self.seconds else 3600 / self.seconds

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "steps_per_hour": self.steps_per_hour}


def plan(setup: Setup, room: Room, *, search: bool = True) -> Plan:
    """Plan a stage.

    Args:
        setup: what is planned.
        room: that a process has.
        search: look for the largest passes that fit.

    Raises:
        L2VError: parts that do not go together.
    """
    say(f"planning stage={setup.stage.name} of {setup.model.source} on {setup.processes} device(s)")
    needs = quick_needs(setup)
    fitting = fits(needs, room)
    # under FSDP2 each reads its own part, and the first process writes the whole encoder at the end
    readers = 1 if setup.sharing == "fsdp" else setup.devices
    # what is trained without an adapter is kept in float32
    width = 2 if setup.adapter is not None and setup.model.dtype in ("bfloat16", "float16") else 4
    return Plan(
        needs=needs,
        room=room,
        fits=fitting,
        largest=largest(setup, room) if search and fitting else None,
        host=int(setup.devices * _LIBRARIES + readers * _LOADING * needs.weights),
        checkpoints=_CHECKPOINTS * 3 * 4 * needs.trained,
        encoder=width * needs.parameters,
        seconds=room.seconds(needs.flops),
    )


def first_change(setup: Setup, made: Plan) -> str | None:
    """The setting to change where a stage does not fit; None: none of those that were tried suffices."""
    return first_that_fits(setup, made.room)


def refuse(setup: Setup, made: Plan, *, search: bool = True) -> L2VError:
    """What to tell where a stage does not fit: the setting to change, which ``search`` looks for."""
    where = "while it loads" if made.needs.loading > made.needs.training else "at the peak"
    way = "search=true looks for the setting to change"
    if search:
        found = first_change(setup, made)
        way = f"it fits with {found}" if found else "no setting that was tried makes it fit; choose a smaller model="
    return L2VError(
        f"does not fit: {made.peak_gib:.1f} GiB a device {where}, and it has {made.room.memory_gib:.1f} GiB; {way}"
    )
