"""What a stage trains, on what, and how: settings, checked, with nothing loaded yet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from transformers import PreTrainedTokenizerBase

from l2v.data.texts import DataSource
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.evaluation.periodic import PeriodicEvaluation
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import Attention
from l2v.models.loading import AttnImplementation, Checkpointing, DType, Kind
from l2v.models.quantization import Quantization
from l2v.pooling.pooling import Pooling
from l2v.runs.files import draft_folder
from l2v.runs.initialization import Initialization
from l2v.runs.run import Run, finish_lineage
from l2v.stages.stage import Stage
from l2v.text.prompts import SEPARATOR, PooledTokens, Prompt
from l2v.training.checkpoints import checkpoint_weights


@dataclass(frozen=True)
class Model:
    """The decoder and how it is loaded; see :meth:`l2v.models.backbone.Backbone.load`."""

    source: str
    revision: str | None = None
    attention: Attention = "bidirectional"
    attn_implementation: AttnImplementation = "auto"
    dtype: DType = "float32"
    gradient_checkpointing: Checkpointing = False
    partial: bool = False
    trust_remote_code: bool = False
    pooling: Pooling = "mean"
    max_length: Annotated[int, Ge(1)] = 512
    template: str | None = None
    separator: str = SEPARATOR
    pooled_tokens: PooledTokens = "after_prompt"
    quantization: Quantization | None = None
    published: dict[str, list[str]] = field(default_factory=dict)
    """Adapters for this model on the hub, by stage: what ``init_from='${model.published.simcse}'`` stands for."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of a stage that go with this model; ``conf/stage`` reads them."""
    kind: Kind = "decoder"

    def prompt(self, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """What stands around a text, with the tokenizer's chat template written out where it was asked for."""
        return Prompt.of(tokenizer, template=self.template, separator=self.separator, pooled_tokens=self.pooled_tokens)


@dataclass(frozen=True)
class Training:
    """What a stage trains, on what, and how.

    Attributes:
        stage: built, without its model.
        model: how the decoder is loaded.
        lora: the adapter to train; None trains all weights, in float32.
        train: training data.
        validation: data to validate on.
        test: data to score at the end, of stages that score.
        workers: loader processes.
        trainer: keyword arguments of ``lightning.Trainer``; the strategy may be what makes it.
        loggers: what makes the loggers beside the run's own.
        seed: of everything random.
        config: the whole resolved config, for the loggers.
        during: what to evaluate while training; None: nothing.
        callbacks: more of them.
        show: progress bars.
    """

    stage: Stage
    model: Model
    lora: Lora | None
    train: DataSource
    validation: DataSource
    test: DataSource | None = None
    workers: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    loggers: list[Callable[[], Logger]] = field(default_factory=list)
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    during: PeriodicEvaluation | None = None
    callbacks: list[Callback] = field(default_factory=list)
    show: bool = True

    def fingerprints(self) -> list[str]:
        """Of the data, which has to be the same for a run to be the same."""
        sources = [self.train, self.validation, *([self.test] if self.test is not None else [])]
        return [source.fingerprint() for source in sources]

    def encoder(self, backbone: Backbone) -> Encoder:
        """A backbone as the encoder that this training is about."""
        return Encoder(
            backbone,
            pooling=self.model.pooling,
            max_length=self.model.max_length,
            prompt=self.model.prompt(backbone.tokenizer),
        )

    def load_backbone(
        self, start: Initialization, *, training_mode: bool, device: torch.device | str = "cpu"
    ) -> Backbone:
        """The backbone as the stage begins with it: base, merged adapters, and the adapter to train."""
        model, stage = self.model, self.stage
        backbone = Backbone.load(
            start.base,
            attention=model.attention,
            attn_implementation=model.attn_implementation,
            # all weights are trained in float32: bfloat16 would round the updates away
            dtype=model.dtype if self.lora or not stage.trains_backbone else "float32",
            attention_dropout=stage.attention_dropout if training_mode else None,
            gradient_checkpointing=model.gradient_checkpointing if training_mode else False,
            with_head=stage.needs_head,
            head_source=start.head,
            merge=start.merge,
            partial=model.partial,
            kind=model.kind,
            trust_remote_code=model.trust_remote_code,
            # an adapter that was trained on 4 bits is merged into the weights as they were
            quantization=model.quantization if training_mode else None,
            device=device,
        )
        if start.adapter is not None:
            backbone.load_adapter(start.adapter, trainable=True)
        elif self.lora is not None:
            backbone.add_adapter(self.lora)
        return backbone

    def export(self, run: Run, start: Initialization) -> None:
        """Write the adapter and the merged encoder of a run from its last checkpoint, and its lineage.

        The model is built anew from what the run folder holds, so that a run that cannot be read back is found now.
        Weights of the stage itself stay in the checkpoint.

        Raises:
            L2VError: the checkpoint does not hold the backbone's trainable weights.
        """
        backbone = self.load_backbone(start, training_mode=False)
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
        if backbone.has_adapter:
            backbone.save_adapter(run.adapter)
            backbone.merge_adapter()
        with draft_folder(run.encoder) as draft:
            self.encoder(backbone).save(draft)
        finish_lineage(run, self.stage.name)
