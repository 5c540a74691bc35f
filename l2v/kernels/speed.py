"""The forward passes of this room, given to a model's modules. Their names and weights stay."""

from torch import nn

from l2v.kernels.gates import speed_up_gates
from l2v.kernels.linear import speed_up_linears
from l2v.kernels.norms import speed_up_norms
from l2v.kernels.rotary import speed_up_rotary


def speed_up(model: nn.Module) -> None:
    """Give a model's linear layers, LoRA layers, norms, rotary attention and gated MLPs faster or leaner passes."""
    speed_up_linears(model)
    speed_up_norms(model)
    speed_up_rotary(model)
    speed_up_gates(model)
