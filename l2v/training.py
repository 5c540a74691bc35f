"""Train one stage: from settings to a finished run folder."""

import gc
import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedTokenizerBase

from l2v.backbone import (
    AttnImplementation,
    Backbone,
    Checkpointing,
    DType,
    Kind,
    Lora,
    load_tokenizer_and_config,
    trainable_parameters,
)
from l2v.bidirectional import Attention
from l2v.data.probe import WordData
from l2v.data.rows import TokenData
from l2v.data.states import Frozen
from l2v.data.texts import TextSource
from l2v.data.words import WordSource
from l2v.encoder import Encoder
from l2v.errors import L2VError, Stopped, first_line
from l2v.evaluation.during import During, Evaluations
from l2v.loop import AtomicCheckpointIO, GracefulStop, RunLogger, SaveLast, StageProgress
from l2v.pooling import Pooling
from l2v.prompts import SEPARATOR, PooledTokens, Prompt
from l2v.quantization import Quantization
from l2v.runs import BEST, LAST, Run, Start, finish_lineage, now
from l2v.sources import draft_folder, source_hash
from l2v.stages.stage import Stage
from l2v.stages.word import WordProbe


@dataclass(frozen=True)
class Model:
    """The decoder and how it is loaded; see :meth:`l2v.backbone.Backbone.load`."""

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
    during: During | None = None
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


def train(training: Training, run: Run, start: Start, *, resume: bool = False) -> None:
    """Train a stage in ``run`` and export its encoder.

    Args:
        training: the settings.
        run: the folder, with ``run.json`` and ``lineage.json`` in it.
        start: the base, the adapters to merge, and the adapter to go on with.
        resume: go on from the run's last checkpoint.

    Raises:
        L2VError: a mistake that the user can mend.
        Stopped: by a signal, after saving.
    """
    try:
        if training.during is not None:
            training.during.check()
        _train(training, run, start, resume)
        if isinstance(training.stage, WordProbe):
            if _is_first():
                training.stage.finish(run, show=training.show)
        else:
            del training.stage.backbone  # export loads the model anew; two of them would not fit where one does
            gc.collect()
            if _is_first():
                export(training, run, start)
                finish_lineage(run, training.stage.name)
        if _is_first():
            run.update(status="finished", finished=now())
    except Stopped:
        if _is_first():
            run.update(status="stopped")
        raise
    except SystemExit as error:  # Lightning's answer to Ctrl-C and SIGTERM outside of its training steps
        number = signal.SIGTERM if isinstance(error, SIGTERMException) else signal.SIGINT
        if _is_first():
            run.update(status="stopped")
        raise Stopped(number, f"stopped; what {run.folder} had saved before is kept") from None
    except BaseException as error:
        if _is_first():
            run.update(status="failed", error=str(error) or type(error).__name__)
        raise


def _train(training: Training, run: Run, start: Start, resume: bool) -> None:
    stage = training.stage
    checkpoint = run.last_checkpoint() if resume else None
    L.seed_everything(training.seed, verbose=False)
    logger = RunLogger(run.folder)
    stop = GracefulStop()
    trainer = _trainer(training, run, logger, stop)
    logger.count_steps = lambda: trainer.global_step
    data: TokenData | WordData
    if isinstance(stage, WordProbe):
        data = word_data(training, start, trainer.strategy.root_device)
        stage.attach_data(data, training.seed, start.stages())
    else:
        data = TokenData(
            stage, cast(TextSource, training.train), cast(TextSource, training.validation), workers=training.workers
        )
        backbone = load_backbone(training, start, training_mode=True, device=trainer.strategy.root_device)
        stage.attach(backbone, training.seed)
        if trainer.is_global_zero:
            _note_model(run, start, backbone)
    can_validate_alone = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if checkpoint is None:
        logger.start(None)
        if can_validate_alone:
            trainer.validate(stage, data, verbose=False)
    else:
        logger.start(_step(checkpoint, run))
    trainer.fit(stage, data, ckpt_path=checkpoint, weights_only=True)
    if stop.signal is not None and trainer.global_step < stage.max_steps:
        raise Stopped(
            stop.signal,
            f"stopped at step {trainer.global_step} of {stage.max_steps} and saved; go on with: "
            f"python train.py resume={run.folder}",
        )
    if stage.max_steps % min(stage.validate_every, stage.max_steps) and can_validate_alone:
        trainer.validate(stage, data, verbose=False)
        if trainer.is_global_zero:
            run.update(metrics=logger.last())


def _trainer(training: Training, run: Run, logger: RunLogger, stop: GracefulStop) -> L.Trainer:
    stage = training.stage
    batches = training.trainer.get("accumulate_grad_batches", 1)
    loggers = [make() for make in training.loggers]
    for extra in loggers:
        extra.log_hyperparams(training.config)

    def saved(step: int) -> None:
        run.update(step=step, seconds=round(logger.seconds, 1), metrics=logger.last())

    evaluations = [Evaluations(training.during, training.encoder, logger.has)] if training.during is not None else []
    trainer = make_trainer(
        training.trainer,
        max_steps=stage.max_steps,
        val_check_interval=min(stage.validate_every, stage.max_steps) * batches,
        check_val_every_n_epoch=None,
        logger=[logger, *loggers],
        callbacks=[
            *([StageProgress()] if training.show else []),
            *training.callbacks,
            ModelCheckpoint(run.checkpoints, Path(BEST).stem, monitor="validation/loss", enable_version_counter=False),
            SaveLast(run.checkpoints / LAST, saved),
            stop,
            *evaluations,
        ],
        enable_progress_bar=training.show,
        num_sanity_val_steps=0,
        default_root_dir=run.folder,
    )
    if not isinstance(trainer.strategy, DeepSpeedStrategy):
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer


def make_trainer(settings: dict[str, Any], **of_l2v: Any) -> L.Trainer:
    """Lightning's trainer, without the notes that tell a user of l2v nothing.

    Args:
        settings: of ``lightning.Trainer``; the precision may be auto, and the strategy what makes it.
        of_l2v: what no override sets.

    Raises:
        L2VError: the machine has no such accelerator, or settings exclude each other.
    """
    quiet_lightning()
    settings = dict(settings)
    settings["precision"] = resolve_precision(settings.get("precision", "auto"), settings.get("accelerator", "auto"))
    try:
        if callable(settings.get("strategy")):
            settings["strategy"] = settings["strategy"]()
        return L.Trainer(**settings, **of_l2v, enable_model_summary=False, use_distributed_sampler=False)
    except MisconfigurationException as error:
        raise L2VError(f"trainer: {first_line(error)}") from error


def load_backbone(
    training: Training, start: Start, *, training_mode: bool, device: torch.device | str = "cpu"
) -> Backbone:
    """The backbone as the stage begins with it: base, merged adapters, and the adapter to train."""
    model, stage = training.model, training.stage
    backbone = Backbone.load(
        start.base,
        attention=model.attention,
        attn_implementation=model.attn_implementation,
        # all weights are trained in float32: bfloat16 would round the updates away
        dtype=model.dtype if training.lora or not stage.trains_backbone else "float32",
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
    elif training.lora is not None:
        backbone.add_adapter(training.lora)
    return backbone


def word_data(training: Training, start: Start, device: torch.device | str = "cpu") -> WordData:
    """The data of a word stage: labelled words as vectors of the frozen model that ``start`` stands for."""
    model, stage = training.model, cast(WordProbe, training.stage)

    def frozen() -> Frozen:
        tokenizer, config = load_tokenizer_and_config(
            start.base, kind=model.kind, trust_remote_code=model.trust_remote_code
        )
        commit = None if start.base.is_local else getattr(config, "_commit_hash", None)
        settings = [model.attention, model.attn_implementation, model.dtype, model.partial]
        return Frozen(
            fingerprint=[start.fingerprint(), commit, *settings],
            tokenizer=tokenizer,
            depth=config.get_text_config().num_hidden_layers,
            max_length=model.max_length,
            load=lambda: load_backbone(training, start, training_mode=False, device=device),
        )

    train, validation = cast(WordSource, training.train), cast(WordSource, training.validation)
    return WordData(stage, frozen, train, validation, training.test, workers=training.workers, show=training.show)


def export(training: Training, run: Run, start: Start) -> None:
    """Write the adapter and the merged encoder of a run from its last checkpoint.

    The model is built anew from what the run folder holds, so that a run that cannot be read back is found now.
    """
    backbone = load_backbone(training, start, training_mode=False)
    weights = {k.removeprefix("backbone."): v for k, v in checkpoint_weights(run.last_checkpoint()).items()}
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
        training.encoder(backbone).save(draft)


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trainable weights in a checkpoint file, or in a folder that DeepSpeed wrote."""
    if checkpoint.is_dir():
        from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

        whole = checkpoint.with_suffix(".full")
        convert_zero_checkpoint_to_fp32_state_dict(checkpoint, whole)
        checkpoint = whole
    return AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]


def _is_first() -> bool:
    """Whether this is the first process of the training, which writes the run's files."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _step(checkpoint: Path, run: Run) -> int:
    """The optimizer steps that a checkpoint stands for."""
    if checkpoint.is_dir():
        return run.record()["step"]
    return AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"]


def accelerator_of(name: str) -> str:
    """cpu, cuda or mps: what Lightning takes for a name, which may be auto or gpu."""
    if name not in ("auto", "gpu"):
        return name
    if torch.backends.mps.is_available():
        return "mps"
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """``auto`` is bf16-mixed where the processor multiplies bfloat16 natively (any current GPU), else 32-true."""
    if precision != "auto":
        return precision
    on_gpu = accelerator_of(accelerator) == "cuda"
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def _note_model(run: Run, start: Start, backbone: Backbone) -> None:
    if not start.base.is_local:
        commit = getattr(backbone.config, "_commit_hash", None)
        replace(start.lineage, base_hash=source_hash(start.base, commit)).write(run.folder / "lineage.json")
    trainable = trainable_parameters(backbone)
    run.update(
        proof=asdict(backbone.proof),
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        parameters=sum(p.numel() for p in backbone.parameters()),
    )


def quiet_lightning() -> None:
    """Without the notes of Lightning and transformers that tell a user of l2v nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",
    ".*your dataloader is not resumable.*",  # it is: its order is a function of the step
    ".*Found .* module.* in eval mode.*",
    ".*sync_dist=True.*",  # the sums are over all ranks already
)
