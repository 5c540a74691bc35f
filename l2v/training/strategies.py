"""What l2v changes of Lightning's strategies: FSDP2, and the checkpoints of strategies that split what they train."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from l2v.errors import L2VError
from l2v.models.adapters import trainable_parameters
from l2v.models.sharding import own_part, put_back
from l2v.training.checkpoints import read_checkpoint
from l2v.training.parts import MOMENTS, PARTS, Rows, free_folder, name_of, remove_others, write_part


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

    split_checkpoint = False
    """Whether tensors are saved apart from the file, by each process."""

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

    def check_optimizers(self) -> None:
        """Refuse an optimizer that could not be saved, before it steps.

        Raises:
            L2VError: of a stage of one's own.
        """
        groups = [len(optimizer.param_groups) for optimizer in self.optimizers]
        own = [getattr(optimizer, "optimizer", optimizer) for optimizer in self.optimizers]
        if groups != [1] or not isinstance(own[0], torch.optim.Adam):
            kinds = ", ".join(type(one).__name__ for one in own)
            raise L2VError(
                f"trainer.strategy: what is split is saved with one AdamW of one group of parameters, and the stage "
                f"has {kinds or 'none'} of {', '.join(map(str, groups))} groups; choose trainer=ddp or gpu"
            )

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
        if (found := self.states()) and not self.split_checkpoint:
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
    """FSDP2 over all processes of all machines, or hybrid: in groups of them.

    Lightning's own splits over the machines only, and its checkpoints gather the frozen weights at every save (13 GB
    for a model of 7B parameters).

    Args:
        replicas: groups of processes that have all weights each (hybrid sharding, HSDP): the number of machines keeps
            the gathers within a machine. 1: the weights are split over all processes.
        gather_dtype: what weights are gathered and computed in: auto is bfloat16 under
            ``trainer.precision=bf16-mixed``, which halves the gathers of full fine-tuning; own: their own, which is
            float32 for what is trained.
        split_checkpoint: save what is trained as it is split, a file a process beside the checkpoint, instead of
            gathering it: for full fine-tuning of large models (:mod:`l2v.training.parts`).
    """

    def __init__(
        self,
        replicas: Annotated[int, Ge(1)] = 1,
        gather_dtype: Literal["auto", "own"] = "auto",
        split_checkpoint: bool = False,
    ) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.replicas = replicas
        self.split_checkpoint = split_checkpoint
        self._gather_dtype = gather_dtype

    @property
    def gather_dtype(self) -> torch.dtype | None:
        """None: weights are gathered as they are."""
        is_mixed = self.precision_plugin.precision == "bf16-mixed"
        return torch.bfloat16 if is_mixed and self._gather_dtype == "auto" else None

    def setup_environment(self) -> None:
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()
        size, rest = divmod(self.world_size, self.replicas)
        if rest:
            raise L2VError(
                f"trainer.strategy.replicas={self.replicas}: {self.world_size} processes are no multiple of it"
            )
        shape, names = ((size,), ("shard",)) if self.replicas == 1 else ((self.replicas, size), ("replicate", "shard"))
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {} if self.split_checkpoint else super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path, parts = Path(filepath), None
        if self.split_checkpoint:
            parts = self.broadcast(free_folder(path, checkpoint["global_step"]))
            states = self.states()
            step = float(states[0]["step"]) if states else None
            if self.replicas == 1 or self.device_mesh.get_local_rank("replicate") == 0:
                write_part(path.parent / parts, self.global_rank, self._own(with_moments=bool(states)))
            checkpoint[PARTS] = {"folder": parts, "weights": list(self._trained()), "step": step}
            self.barrier()
        super().save_checkpoint(checkpoint, path)
        if self.is_global_zero:
            remove_others(path, parts)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(checkpoint_path))

    def _own(self, *, with_moments: bool) -> dict[str, tuple[Tensor, int, int]]:
        """This process's rows of what is trained, where they begin, and how many there are in all."""
        found = {}
        for name, weight in self._trained().items():
            for moment in (None, *(MOMENTS if with_moments else ())):
                one = self._place(weight, moment).detach()
                assert isinstance(one, DTensor)
                found[name_of(name, moment)] = (one.to_local().cpu(), own_part(one)[0].start, len(one))
        return found

    def read(self, weight: Tensor, moment: str | None = None) -> Tensor:
        one = self._place(weight, moment)
        return one.full_tensor() if isinstance(one, DTensor) else one

    def write(self, weight: Tensor, value: Tensor | Rows, moment: str | None = None) -> None:
        one = self._place(weight, moment).detach()
        if isinstance(one, DTensor):
            one.to_local().copy_(value[own_part(one)])
        else:
            one.copy_(value[:])

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
