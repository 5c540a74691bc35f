"""What is planned: a stage, its model, and the machines."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from peft import PeftConfig
from transformers import PretrainedConfig

from l2v.models.adapters import Lora
from l2v.models.settings import DType, Sharding
from l2v.stages.stage import Stage
from l2v.training.settings import Model

Sharing = Literal["one", "ddp", "fsdp", "zero2", "zero3"]
"""How processes share the work."""
_SHARDING: dict[Sharing, Sharding] = {
    "one": "none",
    "ddp": "none",
    "fsdp": "weights",
    "zero2": "optimizer",
    "zero3": "zero3",
}


@dataclass(frozen=True)
class Setup:
    """A stage to plan.

    Attributes:
        stage: built, without its model.
        model: how the decoder is loaded.
        adapter: the adapter to train; None: all weights.
        config: of the decoder, as transformers has it.
        trainer: keyword arguments of ``lightning.Trainer``, the strategy left out.
        strategy: what makes the strategy; None: one process.
        sharing: which it is.
        devices: on a machine.
        nodes: machines.
        on_gpu: whether the devices are GPUs.
        text_tokens: tokens a text; None: as many as the stage reads at most.
        batch: of one process; None: the longest that there can be.
        trained_dtype: of weights that are all trained.
    """

    stage: Stage
    model: Model
    adapter: Lora | PeftConfig | None
    config: PretrainedConfig
    trainer: dict[str, Any] = field(default_factory=dict)
    strategy: Any = None
    sharing: Sharing = "one"
    devices: int = 1
    nodes: int = 1
    on_gpu: bool = True
    text_tokens: int | None = None
    batch: dict[str, Any] | None = None
    trained_dtype: DType = "float32"

    @property
    def processes(self) -> int:
        return self.devices * self.nodes

    @property
    def is_zero(self) -> bool:
        return self.sharing in ("zero2", "zero3")

    @property
    def sharding(self) -> Sharding:
        """What the strategy splits over processes."""
        return _SHARDING[self.sharing]

    def with_model(self, model: Model) -> "Setup":
        return replace(self, model=model)
