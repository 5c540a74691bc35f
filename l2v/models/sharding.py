"""A backbone's weights split over processes."""

from torch.distributed.device_mesh import DeviceMesh

from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers


def shard(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Split a backbone's weights over processes, layer by layer (FSDP2). Its padded forward pass gathers them."""
    from torch.distributed.fsdp import fully_shard

    data_parallel = mesh["data_parallel"]
    for layer in decoder_layers(backbone.decoder):
        fully_shard(layer, mesh=data_parallel)
    fully_shard(backbone, mesh=data_parallel)
