"""What a stage trains, on what, and how: settings, checked, with nothing loaded yet."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from l2v.data.order import seed_of
from l2v.data.texts import DataSource
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.evaluation.periodic import PeriodicEvaluation
from l2v.models.adapters import Lora, Saved, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.proof import Proof
from l2v.models.settings import Checkpointing, EncoderSettings, Sharding
from l2v.pooling import Pooling, load_weights
from l2v.runs.files import draft_folder
from l2v.runs.initialization import Initialization
from l2v.runs.run import Run, finish_lineage
from l2v.stages.stage import Stage
from l2v.text.prompts import SEPARATOR, Prompt
from l2v.training.checkpoints import checkpoint_weights

Exported = Literal["encoder", "adapter", "none"]
Kept = Literal["last", "best"]


@dataclass(frozen=True)
class Model(EncoderSettings):
    """The decoder that is trained, and the encoder that comes out: ``model=``."""

    gradient_checkpointing: Checkpointing = False
    """Activations to recompute: none, all, or ``selective``: all but the products of LoRA layers."""
    published: dict[str, list[str]] = field(default_factory=dict)
    """Adapters for this model on the hub, by stage: what ``init_from='${model.published.simcse}'`` stands for."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of a stage that go with this model; ``conf/stage`` reads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("adapters", "base"):
            if getattr(self, name):
                raise L2VError(f"model.{name}: training begins with the adapters of init_from=; name them there")
        if self.library == "sentence-transformers":
            raise L2VError("model.library=sentence-transformers: l2v trains what it loads itself; set it to null")

    def check(self, *, adapter: bool, sharding: Sharding) -> None:
        """Refuse what does not go with how it is trained, before anything is loaded.

        Args:
            adapter: whether an adapter is trained.
            sharding: what is split over processes.

        Raises:
            L2VError: naming the override.
        """
        if sharding != "none" and self.quantization:
            raise L2VError("model.quantization: weights in 4 bits cannot be sharded; choose trainer=ddp or gpu")
        if self.quantization and not adapter:
            raise L2VError("model.quantization: weights in 4 bits cannot be trained; choose adapter=lora")
        if sharding != "none" and isinstance(self.pooling, Pooling):
            raise L2VError(
                "model.pooling: a pooling of one's own is not split over processes; choose trainer=ddp or gpu"
            )

    def prompt(self, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """What stands around a text, with the tokenizer's chat template written out where it was asked for."""
        separator = SEPARATOR if self.separator is None else self.separator
        pooled_tokens = self.pooled_tokens or "after_prompt"
        return Prompt.of(
            tokenizer,
            template=self.template,
            separator=separator,
            pooled_tokens=pooled_tokens,
            special_tokens=self.special_tokens or "tokens",
        )


@dataclass(frozen=True)
class Training:
    """What a stage trains, on what, and how.

    Attributes:
        stage: built, without its model.
        model: how the decoder is loaded.
        adapter: the adapter to train: LoRA, or any configuration of PEFT; None trains all weights, in float32.
        train: training data.
        validation: data to validate on.
        test: data to score at the end, of stages that score.
        workers: loader processes.
        trainer: keyword arguments of ``lightning.Trainer``; the strategy may be what makes it.
        loggers: what makes the loggers beside the run's own.
        seed: of everything random.
        config: the whole resolved config, for the loggers.
        evaluation: what to evaluate while training; None: nothing.
        exports: what the run ends with beside its checkpoints: adapter and merged encoder, the adapter, or none.
        keep: the checkpoints that a finished run still has: the last, the one with the lowest validation loss.
        callbacks: more of them.
        show: progress bars.
    """

    stage: Stage
    model: Model
    adapter: Lora | PeftConfig | None
    train: DataSource
    validation: DataSource
    test: DataSource | None = None
    workers: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    loggers: list[Callable[[], Logger]] = field(default_factory=list)
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    evaluation: PeriodicEvaluation | None = None
    exports: Exported = "encoder"
    keep: Sequence[Kept] = ("last", "best")
    callbacks: list[Callback] = field(default_factory=list)
    show: bool = True

    def fingerprints(self) -> list[str]:
        """Of the data, which has to be the same for a run to be the same."""
        sources = [self.train, self.validation, *([self.test] if self.test is not None else [])]
        return [source.fingerprint() for source in sources]

    def check(self) -> None:
        """Refuse parts that do not go together, before anything is loaded.

        Raises:
            L2VError: naming the override.
        """
        if check := getattr(self.train, "check_validation", None):
            check(self.validation)
        trained, used = getattr(self.stage, "pooling", None), self.model.pooling or "mean"
        if isinstance(trained, str) and trained != used:
            raise L2VError(
                f"stage.pooling={trained}: the encoder that comes out would pool by model.pooling={used}; set that, "
                "and the stage follows"
            )
        if self.evaluation is not None and not self.stage.trains_backbone:
            raise L2VError(f"evaluate_every: stage={self.stage.name} leaves its encoder as it is; set it to null")
        if self.exports == "adapter" and self.adapter is None:
            raise L2VError("export=adapter: adapter=none trains all weights; choose export=encoder or none")
        if self.exports != "encoder" and not self.stage.trains_backbone:
            raise L2VError(f"export={self.exports}: stage={self.stage.name} exports no encoder; leave it at encoder")
        if self.exports == "none" and not self.keep:
            raise L2VError("export=none and keep_checkpoints=[]: nothing of what is trained would be left")

    def check_start(self, start: Initialization) -> None:
        """Refuse settings of an adapter that goes on with others, before anything is loaded.

        Raises:
            L2VError: naming the override.
        """
        if start.adapter is not None and self.adapter is not None:
            Saved.read(start.adapter).check_goes_on(self.adapter)

    def encoder(self, backbone: Backbone) -> Encoder:
        """A backbone as the encoder that this training is about."""
        return Encoder(
            backbone,
            pooling=backbone.pooling or self.model.pooling or "mean",
            max_length=self.model.max_length,
            text_max_length=self.model.text_max_length,
            prompt=self.model.prompt(backbone.tokenizer),
        )

    def load_backbone(
        self, start: Initialization, *, training_mode: bool, device: torch.device | str = "cpu"
    ) -> Backbone:
        """The backbone as the stage begins with it: base, merged adapters, and the adapter to train."""
        model, stage = self.model, self.stage
        wanted = replace(
            model,
            # all weights are trained in float32: bfloat16 would round the updates away
            dtype=model.dtype if self.adapter or not stage.trains_backbone else "float32",
            layers=None,  # as start.base says
            # an adapter that was trained on 4 bits is merged into the weights as they were
            quantization=model.quantization if training_mode else None,
        )
        backbone = Backbone.load(
            start.base,
            wanted,
            attention_dropout=stage.attention_dropout if training_mode else None,
            gradient_checkpointing=model.gradient_checkpointing if training_mode else False,
            with_head=stage.needs_head,
            head_source=start.head,
            merge=start.merge,
            device=device,
        )
        if start.adapter is not None:
            backbone.load_adapter(start.adapter, training=self.adapter)
        elif self.adapter is not None:
            backbone.add_adapter(self.adapter)
        if isinstance(model.pooling, Pooling):
            pooling = copy.deepcopy(model.pooling)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self.seed, "pooling"))
                pooling.build(backbone.hidden_size)
            if start.pooling is not None:
                load_weights(pooling, start.pooling, f"init_from: {start.pooling}")
            backbone.add_pooling(pooling, trainable=stage.trains_pooling)
        return backbone

    def export(self, run: Run, start: Initialization) -> None:
        """Write the adapter and the merged encoder of a run from its last checkpoint, and its lineage.

        The model is built anew from what the run folder holds, so that a run that cannot be read back is found now; for
        an adapter alone, without reading the weights of the base. Weights of the stage itself stay in the checkpoint.

        Raises:
            L2VError: the checkpoint does not hold the backbone's trainable weights.
        """
        if self.exports == "none":
            return
        alone = self.exports == "adapter"
        backbone = self.load_backbone(start, training_mode=False, device="meta" if alone else "cpu")
        own = "backbone."
        weights = {
            name.removeprefix(own): value
            for name, value in checkpoint_weights(run.last_checkpoint()).items()
            if name.startswith(own)
        }
        expected = trainable_parameters(backbone)
        if weights.keys() != expected.keys():
            odd = sorted(weights.keys() ^ expected.keys())
            raise L2VError(
                f"{run.last_checkpoint()}: {len(odd)} trainable tensors are missing or unexpected, e.g. {odd[0]}"
            )
        backbone.load_state_dict(weights, strict=False)
        if alone:
            backbone.proof = Proof(**run.record()["proof"])
            with draft_folder(run.adapter) as draft:
                backbone.save_adapter(draft)
                self.encoder(backbone).save_own_settings(draft)
        else:
            if backbone.has_adapter:
                backbone.save_adapter(run.adapter)
                backbone.merge_adapter()
            with draft_folder(run.encoder) as draft:
                self.encoder(backbone).save(draft)
        finish_lineage(run, self.stage.name)
