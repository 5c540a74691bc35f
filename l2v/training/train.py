"""Train one stage: from settings to a finished run folder."""

import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from l2v.errors import L2VError, Stopped, Terminated
from l2v.evaluation.periodic import EvaluationCallback
from l2v.models.adapters import trainable_parameters
from l2v.models.backbone import Backbone
from l2v.runs.hashes import settings_hash, source_hash
from l2v.runs.initialization import Initialization
from l2v.runs.run import BEST, LAST, Run, now
from l2v.training.callbacks import GracefulStop, StageProgress, ValidateAtEnds
from l2v.training.checkpoints import AtomicCheckpointIO, SaveBest, SaveLast, read_checkpoint, remove_checkpoint
from l2v.training.loggers import opened
from l2v.training.metrics import RunLogger
from l2v.training.settings import Training
from l2v.training.strategies import FullySharded, OneFile, validates_alone
from l2v.training.together import EndTogether, lost_connection
from l2v.training.trainer import make_trainer, quiet_lightning, seconds_of


def train(training: Training, run: Run, start: Initialization, *, resume: bool = False) -> None:
    """Train a stage in ``run``, and let it finish: export its encoder, or whatever it trains for.

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
        if training.evaluation is not None:
            training.evaluation.check()
        _train(training, run, start, resume)
        training.stage.release()
        if _is_first():
            training.stage.finish(training, run, start)
            run.update(status="finished", finished=now())
            if "last" not in training.keep:
                remove_checkpoint(run.checkpoints / LAST)
    except Stopped:
        if _is_first():
            run.update(status="stopped")
        raise
    except SystemExit as error:  # Lightning's answer to Ctrl-C and SIGTERM outside of its training steps
        number = signal.SIGTERM if isinstance(error, (SIGTERMException, Terminated)) else signal.SIGINT
        if _is_first():
            run.update(status="stopped")
        raise Stopped(number, f"stopped; what {run.folder} had saved before is kept") from None
    except KeyboardInterrupt:
        if _is_first():
            run.update(status="stopped")
        raise
    except BaseException as error:
        lost = lost_connection(error)
        told = "another process of the training was killed or has failed; its message, or torchrun's, says why"
        if _is_first():
            run.update(status="failed", error=told if lost else str(error) or type(error).__name__)
        if lost:
            raise L2VError(told) from error
        raise


@quiet_lightning()
def _train(training: Training, run: Run, start: Initialization, resume: bool) -> None:
    stage = training.stage
    checkpoint = run.last_checkpoint() if resume else None
    L.seed_everything(training.seed, verbose=False)
    logger = RunLogger(run.folder)
    stop = GracefulStop(seconds_of(training.trainer.get("max_time")))
    with opened(training.loggers, training.config, run) as others:
        trainer = _trainer(training, run, start, logger, others, stop)
        logger.count_steps = lambda: trainer.global_step
        stage.share_batch(trainer.world_size, trainer.accumulate_grad_batches)
        # weights that will be split are on no device before
        is_split = isinstance(trainer.strategy, FullySharded) and stage.trains_backbone
        data = stage.data(training, start, torch.device("meta") if is_split else trainer.strategy.root_device)
        if checkpoint is None:
            logger.start(None)
            if validates_alone(trainer.strategy):
                trainer.validate(stage, data, verbose=False)
        else:
            logger.start(_step(checkpoint, run))
        trainer.fit(stage, data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            run.update(metrics=logger.last())  # what was evaluated after the last save is among them
        if stop.signal is not None and trainer.global_step < stage.max_steps:
            raise Stopped(
                stop.signal,
                f"stopped at step {trainer.global_step} of {stage.max_steps} and saved; go on with: "
                f"python train.py resume={run.folder}",
            )


def _trainer(
    training: Training,
    run: Run,
    start: Initialization,
    logger: RunLogger,
    others: Sequence[Logger],
    stop: GracefulStop,
) -> L.Trainer:
    stage = training.stage
    batches = training.trainer.get("accumulate_grad_batches", 1)

    def saved(step: int) -> None:
        run.update(step=step, seconds=round(logger.seconds, 1), metrics=logger.last())

    def begun(trainer: L.Trainer, _: L.LightningModule) -> None:
        if isinstance(trainer.strategy, OneFile):
            trainer.strategy.check_optimizers()
        if stage.trains_backbone and trainer.is_global_zero:
            _note_model(run, start, stage.backbone)

    evaluations = (
        [EvaluationCallback(training.evaluation, training.encoder, logger.has)]
        if training.evaluation is not None
        else []
    )
    trainer = make_trainer(
        {key: value for key, value in training.trainer.items() if key != "max_time"},
        max_steps=stage.max_steps,
        val_check_interval=min(stage.validate_every, stage.max_steps) * batches,
        check_val_every_n_epoch=None,
        logger=[logger, *others],
        callbacks=[
            *([StageProgress()] if training.show else []),
            *training.callbacks,
            EndTogether(run),
            LambdaCallback(on_fit_start=begun),
            ValidateAtEnds(),
            *([SaveBest(run.checkpoints / BEST, _validated(training))] if "best" in training.keep else []),
            SaveLast(run.checkpoints / LAST, saved),
            stop,
            *evaluations,
        ],
        enable_progress_bar=training.show,
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in training.callbacks),
        num_sanity_val_steps=0,
        default_root_dir=run.folder,
    )
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer


_NOT_VALIDATED = {
    *("max_steps", "learning_rate", "warmup_steps", "weight_decay", "validate_every"),
    *("schedule", "schedule_steps", "schedule_epochs", "decay_steps"),
    *("batch_size", "global_batch_size", "micro_batch_tokens", "grad_cache"),
}
"""Settings of a stage that change nothing of a validation's loss, or not in a run: its steps keep their rows."""


def _validated(training: Training) -> str:
    """What the losses of validations are of, as a hash."""
    settings = {key: value for key, value in training.config.get("stage", {}).items() if key not in _NOT_VALIDATED}
    return settings_hash([training.validation.fingerprint(), settings])


def _is_first() -> bool:
    """Whether this is the first process of the training, which writes the run's files."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _step(checkpoint: Path, run: Run) -> int:
    """The optimizer steps that a checkpoint stands for."""
    return read_checkpoint(checkpoint)["global_step"]


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
