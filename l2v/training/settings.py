"""What a stage trains, on what, and how: settings, checked, with nothing loaded yet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from transformers import PreTrainedTokenizerBase

from l2v.data.texts import TextSource
from l2v.encoders.encoder import Encoder
from l2v.evaluation.periodic import PeriodicEvaluation
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import Attention
from l2v.models.quantization import Quantization
from l2v.models.settings import AttnImplementation, Checkpointing, DType, Kind
from l2v.pooling import PoolingName
from l2v.probing.words import WordSource
from l2v.stages.stage import Stage
from l2v.text.prompts import SEPARATOR, PooledTokens, Prompt


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
    pooling: PoolingName = "mean"
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
        train: training texts.
        validation: texts to validate on.
        test: sentences to score at the end, of stages that score.
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
    train: TextSource | WordSource
    validation: TextSource | WordSource
    test: WordSource | None = None
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
