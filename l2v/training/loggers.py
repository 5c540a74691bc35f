"""Loggers of Lightning beside the run's own: a run of theirs ends, and goes on, with the run of l2v's."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger

from l2v.errors import Stopped
from l2v.runs.run import Run

_WANDB = "wandb"
"""In a run's record: the id of its run at Weights & Biases."""


@contextmanager
def opened(makers: Sequence[Callable[[], Logger]], config: dict[str, Any], run: Run) -> Iterator[list[Logger]]:
    """The loggers, told the config; a run at Weights & Biases that began here ends here.

    Args:
        makers: what makes them.
        config: of the training.
        run: which is logged; where it goes on, so does its run at Weights & Biases.
    """
    before, kept = _active(), run.record().get(_WANDB)
    loggers = [make() for make in makers]
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.version is None:
            logger._id = logger._wandb_init["id"] = kept
    failed = True
    try:
        for logger in loggers:
            logger.log_hyperparams(config)
            if isinstance(logger, WandbLogger) and (active := _active()) is not None and active is not before:
                run.update(**{_WANDB: active.id})
        yield loggers
        failed = False
    except Stopped:
        failed = False
        raise
    finally:
        if (active := _active()) is not None and active is not before:
            active.finish(exit_code=int(failed))


def _active() -> Any:
    """This process's run at Weights & Biases, if there is one."""
    return getattr(sys.modules.get(_WANDB), "run", None)
