"""A backbone's weights split over processes."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from l2v.kernels.memory import giving_memory_back, release_pages
from l2v.models.bidirectional import decoder_layers

if TYPE_CHECKING:
    from l2v.models.backbone import Backbone


def shard(backbone: "Backbone", mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Split a backbone's weights over processes (FSDP2), and prove it. Its padded forward pass gathers them.

    What was loaded to no device (``meta``) is merged and split layer by layer: no process holds more than its share,
    and one layer.

    Args:
        backbone: with whole weights, or on no device.
        mesh: of one dimension, or of two (hybrid): groups, each with all weights, and the processes of a group.
        dtype: what weights are gathered and computed in; gradients are summed in float32. None: their own.

    Raises:
        L2VError: the proof fails.
    """
    split(backbone, mesh, dtype)
    backbone.prove()
    put_back(backbone)


@giving_memory_back()
def split(backbone: "Backbone", mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """The first half of :func:`shard`, in which the processes do not wait for each other."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # autocast decides what a layer computes in: it gets its inputs as they are
    policy = MixedPrecisionPolicy(dtype, dtype and torch.float32, cast_forward_inputs=False)
    for part in [*decoder_layers(backbone.decoder), backbone]:
        backbone.settle(part)
        whole = [weight.data for weight in part.parameters() if not isinstance(weight, DTensor)]
        fully_shard(part, mesh=mesh, mp_policy=policy)
        while whole:
            release_pages(whole.pop())


def put_back(module: nn.Module) -> None:
    """Let go of gathered weights (FSDP2), so that the parameters are what the optimizer knows."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_split(module: nn.Module) -> bool:
    """Whether a forward pass needs all processes: each has a part of the weights (FSDP2, ZeRO-3)."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in module.parameters())


def most_of_all(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers; called on all of them."""
    largest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def own_part(weight: DTensor) -> tuple[slice, ...]:
    """The part of a whole weight that is this process's."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))
