"""DeepSpeed's ZeRO as l2v runs it: the checkpoints of every other strategy, and processes on a CPU to try it out."""

from typing import Any, Literal, cast

import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from l2v.models.adapters import trainable_parameters
from l2v.training.parts import MOMENTS
from l2v.training.strategies import OneFile


class ZeRO(OneFile, DeepSpeedStrategy):
    """Optimizer and gradients (stage 2), and weights (stage 3), split over all processes.

    DeepSpeed's own checkpoint is a folder of pickles that is overwritten in place and fits one number of processes.

    Args:
        stage: 2 or 3.
        offload_optimizer: keep the optimizer in the CPU's memory, and step there, with torch's AdamW.
        zero: more of the section ``zero_optimization`` of DeepSpeed's configuration, such as
            ``stage3_prefetch_bucket_size``; what it does not name stays as Lightning sets it.
        settings: of Lightning's ``DeepSpeedStrategy``.
    """

    def __init__(
        self,
        stage: Literal[2, 3] = 2,
        offload_optimizer: bool = False,
        zero: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        # rows a process, which only DeepSpeed's own speed log reads
        settings = {"logging_batch_size_per_gpu": 1, **settings}
        super().__init__(stage=stage, offload_optimizer=offload_optimizer, **settings)
        config = cast(dict[str, Any], self.config)
        config.setdefault("zero_optimization", {}).update(zero or {})
        if offload_optimizer:  # DeepSpeed's own AdamW has to be compiled on each machine
            config["zero_force_ds_cpu_optimizer"] = False

    # processes on a CPU

    def setup_environment(self) -> None:
        if not isinstance(self.accelerator, CUDAAccelerator | CPUAccelerator):
            raise MisconfigurationException("accelerator: DeepSpeed runs on cuda, and on cpu to try it out")
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        # it would be compiled at the first start, by all processes, behind a lock that a killed one leaves locked
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed's engine compares the index with its own, which is 0 on a CPU
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    # checkpoints

    def read(self, weight: Tensor, moment: str | None = None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        return safe_get_full_fp32_param(weight) if moment is None else safe_get_full_optimizer_state(weight, moment)

    def write(self, weight: Tensor, value: Tensor, moment: str | None = None) -> None:
        if moment is None:
            self._write_rounded(weight, value)
        if self.zero_stage_3:
            self._write_part(weight, value, moment)
        else:
            self._write_fragment(weight, value, moment)

    def states(self) -> list[dict[str, Any]]:
        return [state for state in self._inner.state.values() if state]

    def begin_states(self, step: Tensor) -> None:
        for flat in self._flat():
            self._inner.state[flat] = {"step": step.clone(), **{one: torch.zeros_like(flat) for one in MOMENTS}}
        if not self.zero_stage_3:  # or each weight does not know its part of them before the first step
            self.optimizers[0]._lazy_init_hp_params_optimizer_state()  # type: ignore[attr-defined]

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """AdamW, which DeepSpeed's optimizer wraps."""
        return self.optimizers[0].optimizer  # type: ignore[attr-defined]

    def _flat(self) -> list[Tensor]:
        """What AdamW steps: this process's part of all trained weights, in float32."""
        outer: Any = self.optimizers[0]
        return list(outer.fp32_partitioned_groups_flat if self.zero_stage_3 else outer.single_partition_of_fp32_groups)

    def _write_rounded(self, weight: Tensor, value: Tensor) -> None:
        """The weight as forward passes see it, which may be in 16 bits."""
        import deepspeed

        with torch.no_grad():
            if not self.zero_stage_3:
                weight.copy_(value)
                return
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
                if self.is_global_zero:
                    weight.copy_(value)

    def _write_part(self, weight: Any, value: Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = weight.ds_tensor.numel()  # of every process; the last may be filled up
        begin = self.global_rank * size
        part = torch.zeros(size)
        own = value.flatten()[begin : begin + size]
        part[: len(own)] = own
        if moment is None:
            safe_set_local_fp32_param(weight, part)
        else:
            safe_set_local_optimizer_state(weight, part, moment)

    def _write_fragment(self, weight: Tensor, value: Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if moment is None:
            safe_set_full_fp32_param(weight, value)
        else:
            safe_set_full_optimizer_state(weight, value, moment)

    # weights in float32

    def _initialize_deepspeed_train(self, model: nn.Module) -> None:
        """Starts from the weights as they were loaded: the engine rounds them before it copies them to float32."""
        rounded = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(self.precision_plugin.precision))
        exact = {
            name: weight.detach().cpu().clone()
            for name, weight in trainable_parameters(model).items()
            if rounded is not None and not torch.equal(weight.to(rounded).to(weight.dtype), weight)
        }
        super()._initialize_deepspeed_train(model)
        for name, weight in self._trained().items():
            if name in exact:
                self.write(weight, exact[name])
