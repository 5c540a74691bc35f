"""Train one stage: from settings to a finished run folder."""

import gc
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from l2v.data.datamodule import TokenData
from l2v.data.texts import TextSource
from l2v.errors import L2VError, Stopped
from l2v.evaluation.periodic import EvaluationCallback
from l2v.models.adapters import trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.loading import load_tokenizer_and_config
from l2v.probing.datamodule import WordData
from l2v.probing.stage import WordProbe
from l2v.probing.states import Frozen
from l2v.probing.words import WordSource
from l2v.runs.files import draft_folder
from l2v.runs.hashes import source_hash
from l2v.runs.initialization import Initialization
from l2v.runs.run import BEST, LAST, Run, finish_lineage, now
from l2v.training.callbacks import GracefulStop, StageProgress
from l2v.training.checkpoints import AtomicCheckpointIO, SaveLast
from l2v.training.metrics import RunLogger
from l2v.training.settings import Training
from l2v.training.trainer import make_trainer, quiet_lightning


def train(training: Training, run: Run, start: Initialization, *, resume: bool = False) -> None:
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


@quiet_lightning()
def _train(training: Training, run: Run, start: Initialization, resume: bool) -> None:
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

    evaluations = (
        [EvaluationCallback(training.during, training.encoder, logger.has)] if training.during is not None else []
    )
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


def load_backbone(
    training: Training, start: Initialization, *, training_mode: bool, device: torch.device | str = "cpu"
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


def word_data(training: Training, start: Initialization, device: torch.device | str = "cpu") -> WordData:
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


def export(training: Training, run: Run, start: Initialization) -> None:
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


def _note_model(run: Run, start: Initialization, backbone: Backbone) -> None:
    if not start.base.is_local:
        commit = getattr(backbone.config, "_commit_hash", None)
        replace(start.lineage, base_hash=source_hash(start.base, commit)).write(run.folder / "lineage.json")
    trainable = trainable_parameters(backbone)
    run.update(
        proof=asdict(backbone.proof),
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        parameters=sum(p.numel() for p in backbone.parameters()),
    )
