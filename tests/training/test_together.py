"""What tells of a process that has gone away."""

import pytest
from torch.distributed import DistBackendError

from l2v.training.together import lost_connection


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:53900"), True),
        (DistBackendError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo/transport"), False),
    ],
    ids=str,
)
def test_a_lost_connection_is_known(error: Exception, lost: bool) -> None:
    assert lost_connection(error) == lost
