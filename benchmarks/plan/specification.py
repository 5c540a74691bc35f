"""A training of a random Llama that is planned and measured."""

from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy
from transformers import LlamaConfig

from l2v.losses.contrastive import Contrastive
from l2v.models.adapters import Lora
from l2v.models.settings import Checkpointing
from l2v.planning.setup import Setup
from l2v.stages.mntp import MNTP
from l2v.stages.simcse import SimCSE
from l2v.stages.stage import Stage
from l2v.stages.supervised import Supervised
from l2v.training.settings import Model
from l2v.training.strategies import FullySharded


@dataclass(frozen=True)
class Specification:
    """Sizes of the model and the batch, and how it is trained."""

    hidden: int
    layers: int
    vocabulary: int
    rows: int
    """Of a batch of one process."""
    length: int
    """Tokens."""
    stage: Literal["mntp", "simcse", "supervised"] = "mntp"
    lora: bool = True
    checkpointing: Checkpointing = False
    sharing: Literal["one", "ddp", "fsdp"] = "one"
    """Two processes, but for ``one``."""
    pass_tokens: int | None = None
    """``stage.micro_batch_tokens``, with GradCache where the stage has it."""

    def setup(self) -> Setup:
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=max(1, self.hidden // 64),
            tie_word_embeddings=False,
        )
        strategies: dict[str, Any] = {
            "one": None,
            "ddp": lambda: DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True),
            "fsdp": FullySharded,
        }
        return Setup(
            stage=self._stage(),
            model=Model("random", gradient_checkpointing=self.checkpointing),
            adapter=Lora() if self.lora else None,
            config=config,
            trainer={"precision": "32-true", "gradient_clip_val": 1.0},
            strategy=strategies[self.sharing],
            sharing=self.sharing,
            devices=1 if self.sharing == "one" else 2,
            on_gpu=False,
        )

    def _stage(self) -> Stage:
        common: dict[str, Any] = {
            "name": self.stage,
            "batch_size": self.rows,
            "max_steps": 2,
            "learning_rate": 1e-4,
            "micro_batch_tokens": self.pass_tokens,
        }
        if self.stage == "mntp":
            return MNTP(block_length=self.length, **common)
        common |= {"max_length": self.length, "grad_cache": self.pass_tokens is not None}
        if self.stage == "simcse":
            return SimCSE(attention_dropout=0.3, **common)
        return Supervised(loss=Contrastive(), **common)
