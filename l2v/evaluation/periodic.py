"""A suite of tasks while a stage trains: ``evaluate_every=200 evaluation=quick``, logged as curves."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from l2v.encoders.encoder import Encoder
from l2v.evaluation.results import Entries, ResultStore
from l2v.evaluation.task import Task
from l2v.models.backbone import Backbone
from l2v.models.sharding import is_split
from l2v.progress import say


@dataclass(frozen=True)
class PeriodicEvaluation:
    """What to evaluate while training."""

    every: Annotated[int, Ge(1)]
    """Optimizer steps between evaluations; there is one before the first step and one after the last."""
    suite: str
    tasks: dict[str, Task] = field(default_factory=dict)

    def check(self) -> None:
        """Raise an L2VError where a task misses something; called before anything is loaded."""
        with tempfile.TemporaryDirectory() as folder:
            for task in self.tasks.values():
                task.check(_store(folder))


class EvaluationCallback(Callback):
    """Scores the encoder as it is at a step, and logs each score as ``evaluation/<suite>/<task>``.

    Random generators are put back, so that training goes on as it would have. Processes that hold the whole model share
    the tasks; where its weights are split over processes, each of them runs every task, because each is needed.

    Args:
        evaluation: what, and how often.
        encoder: a backbone as an encoder.
        is_logged: whether a metric of a step is logged already, as it is after a resume.
    """

    def __init__(
        self,
        evaluation: PeriodicEvaluation,
        encoder: Callable[[Backbone], Encoder],
        is_logged: Callable[[int, str], bool],
    ) -> None:
        self.evaluation, self.encoder, self.is_logged = evaluation, encoder, is_logged
        self._last = -1
        """Step of the last evaluation."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.evaluation.every == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step >= pl_module.max_steps:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, stage: Any) -> None:
        step = trainer.global_step
        if step == self._last:
            return
        self._last = step
        tasks = {
            name: task for name, task in self.evaluation.tasks.items() if self._can_run(task, stage.backbone, step)
        }
        prefix = f"evaluation/{self.evaluation.suite}"
        done = trainer.is_global_zero and any(self.is_logged(step, f"{prefix}/{name}") for name in tasks)
        if trainer.strategy.reduce_boolean_decision(done, all=False):
            return
        begin = time.monotonic()
        encoder = self.encoder(stage.backbone)
        with isolate_rng(), trainer.precision_plugin.forward_context():
            scores = _scores(tasks if is_split(stage.backbone) else self._share(trainer, tasks), encoder)
        if torch.distributed.is_initialized():
            found: list[dict[str, float]] = [{}] * trainer.world_size
            torch.distributed.all_gather_object(found, scores)
            scores = {name: value for part in found for name, value in part.items()}
        values = {f"{prefix}/{name}": value for name, value in scores.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**values, f"{prefix}/seconds": time.monotonic() - begin}, step=step)
        if trainer.is_global_zero:
            say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        stage.restart_clock()

    def _share(self, trainer: L.Trainer, tasks: dict[str, Task]) -> dict[str, Task]:
        """Those that are this process's."""
        names = list(tasks)[trainer.global_rank :: trainer.world_size]
        return {name: tasks[name] for name in names}

    def _can_run(self, task: Task, backbone: Backbone, step: int) -> bool:
        """Whether the backbone has what the task needs; said once where it has not."""
        can = backbone.head is not None or not task.needs_head
        if not can and step == 0:
            say(f"{task.label}: left out while training, this stage does not use the model's output head")
        return can


def _scores(tasks: dict[str, Task], encoder: Encoder) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:  # scores of this step are of no use to another
        store = _store(folder)
        entries: Entries = {}
        for name, task in tasks.items():
            entries |= task.table(name, store, task.evaluate(name, encoder, store))
        return {name: found["value"] for name, found in entries.items()}


def _store(folder: str) -> ResultStore:
    return ResultStore(Path(folder), "l2v/training", "now")
