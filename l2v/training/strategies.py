"""What l2v changes of Lightning's strategies: FSDP2, and the checkpoints of strategies that split what they train."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from l2v.models.adapters import trainable_parameters
from l2v.models.sharding import own_part, put_back

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight beside the number of its steps."""


def validates_alone(strategy: Strategy) -> bool:
    """Whether ``trainer.validate`` may run before and after training: nothing is split, and no engine is made for it.

    DeepSpeed's engine for validation rounds the weights to 16 bits and leaves its hooks on the model.
    """
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    return whole and not isinstance(strategy, DeepSpeedStrategy)


class OneFile(Strategy):
    """Checkpoints of a strategy that splits weights or optimizer: one file, the one that an unsplit training writes.

    The trained weights and AdamW's moments are gathered one by one, and the first process keeps them. So a checkpoint
    appears whole or not at all, is read without unpickling, and goes on with another number of processes or another
    strategy. Each process takes what is its own from the file, which is mapped.

    A strategy says how one tensor is gathered and put back.
    """

    def read(self, weight: Tensor, moment: str | None = None) -> Tensor:
        """The whole of a trained weight, or of one of its moments, in float32; called on all processes."""
        raise NotImplementedError

    def write(self, weight: Tensor, value: Tensor, moment: str | None = None) -> None:
        """Put back what :meth:`read` gave; called on all processes, each with the whole value."""
        raise NotImplementedError

    def states(self) -> list[dict[str, Any]]:
        """AdamW's states of what this process steps; none before the first step."""
        raise NotImplementedError

    def begin_states(self, step: Tensor) -> None:
        """Make the states that the first step would make, as if so many were done."""
        raise NotImplementedError

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return dict(self._gathered())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        names = list(self._trained())
        (group,) = ({key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups)
        state: dict[int, dict[str, Any]] = {}
        if found := self.states():
            step = torch.tensor(float(found[0]["step"]))
            moments = {moment: dict(self._gathered(moment)) for moment in MOMENTS}
            if self.is_global_zero:
                for number, name in enumerate(names):
                    state[number] = {"step": step.clone(), **{moment: moments[moment][name] for moment in MOMENTS}}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(names)))}]}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        for name, weight in self._trained().items():
            self.write(weight, checkpoint["state_dict"][name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (saved,), (optimizer,) = checkpoint["optimizer_states"], self.optimizers
        for group, kept in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in kept.items() if key != "params"})
        if not saved["state"]:
            return
        self.begin_states(saved["state"][0]["step"])
        for number, weight in enumerate(self._trained().values()):
            for moment in MOMENTS:
                self.write(weight, saved["state"][number][moment], moment)

    def _trained(self) -> dict[str, Tensor]:
        assert self.lightning_module is not None
        return dict(trainable_parameters(self.lightning_module))

    def _gathered(self, moment: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """By name, in the CPU's memory: all on the first process, none on the others, which take part."""
        for name, weight in self._trained().items():
            whole = self.read(weight, moment).detach()
            if self.is_global_zero:
                yield name, whole.to("cpu", torch.float32, copy=True)


class FullySharded(OneFile, ModelParallelStrategy):
    """FSDP2 over all processes of all machines.

    Lightning's own ``data_parallel_size="auto"`` is the number of machines, and its checkpoints gather the frozen
    weights at every save (13 GB for a model of 7B parameters).
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def read(self, weight: Tensor, moment: str | None = None) -> Tensor:
        one = self._place(weight, moment)
        return one.full_tensor() if isinstance(one, DTensor) else one

    def write(self, weight: Tensor, value: Tensor, moment: str | None = None) -> None:
        one = self._place(weight, moment).detach()
        if isinstance(one, DTensor):
            one.to_local().copy_(value[own_part(one)])
        else:
            one.copy_(value)

    def _trained(self) -> dict[str, Tensor]:
        assert self.lightning_module is not None
        put_back(self.lightning_module)  # those outside of the layers stay gathered after a forward pass
        return super()._trained()

    def states(self) -> list[dict[str, Any]]:
        (optimizer,) = self.optimizers
        return list(optimizer.state.values())

    def begin_states(self, step: Tensor) -> None:
        (optimizer,) = self.optimizers
        for weight in self._trained().values():
            optimizer.state[weight] = {"step": step.clone(), **{one: torch.zeros_like(weight) for one in MOMENTS}}

    def _place(self, weight: Tensor, moment: str | None) -> Tensor:
        (optimizer,) = self.optimizers
        return weight if moment is None else optimizer.state[weight][moment]
