"""What l2v changes of Lightning's strategies."""

from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes of all machines; a checkpoint gathers the trained weights only.

    Lightning's own ``data_parallel_size="auto"`` is the number of machines, and its checkpoints gather the frozen
    weights at every save (13 GB for a model of 7B parameters).
    """

    def setup_environment(self) -> None:
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes // int(self._tensor_parallel_size)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)


def validates_alone(strategy: Strategy) -> bool:
    """Whether a trainer can validate before it fits and after it: not where weights are split.

    Lightning ends a validation with ``module.cpu()``, and DeepSpeed does not bring back weights that it has split.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        return not strategy.zero_stage_3
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
