"""Random numbers of the processor, and of the device where it draws its own."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

RandomState = tuple[Tensor, Tensor | None]


def random_state(device: torch.device) -> RandomState:
    """Where torch's generators stand: the processor's, and the device's where it is another."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    module = torch.get_device_module(device)
    return torch.get_rng_state(), module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def set_random_state(device: torch.device, state: RandomState) -> None:
    """Let them stand where they stood."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        module = torch.get_device_module(device)
        module.set_rng_state(state[1], *([] if device.type == "mps" else [device]))


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Afterwards random numbers go on as if nothing had been drawn meanwhile."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, state)
