"""Lightning's trainer as l2v runs it."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from l2v.errors import L2VError, first_line
from l2v.process import level_of


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Meanwhile without the notes of Lightning and transformers that tell a user of l2v nothing."""
    with level_of("lightning.pytorch", logging.WARNING), warnings.catch_warnings():
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",
    ".*your dataloader is not resumable.*",  # it is: its order is a function of the step
    ".*Found .* module.* in eval mode.*",
    ".*sync_dist=True.*",  # the sums are over all ranks already
)


@quiet_lightning()
def make_trainer(settings: dict[str, Any], **of_l2v: Any) -> L.Trainer:
    """Lightning's trainer. Run it within :func:`quiet_lightning`.

    Args:
        settings: of ``lightning.Trainer``; the precision may be auto, and the strategy what makes it.
        of_l2v: what no override sets.

    Raises:
        L2VError: the machine has no such accelerator, or settings exclude each other.
    """
    settings = dict(settings)
    settings["precision"] = resolve_precision(settings.get("precision", "auto"), settings.get("accelerator", "auto"))
    try:
        if callable(settings.get("strategy")):
            settings["strategy"] = settings["strategy"]()
        return L.Trainer(**settings, **of_l2v, enable_model_summary=False, use_distributed_sampler=False)
    except MisconfigurationException as error:
        raise L2VError(f"trainer: {first_line(error)}") from error


def seconds_of(max_time: Any) -> float | None:
    """``trainer.max_time`` as Lightning reads it; None: no limit.

    Raises:
        L2VError: it is none.
    """
    try:
        return Timer(max_time).time_remaining()
    except (MisconfigurationException, TypeError, AttributeError) as error:
        raise L2VError(
            f"trainer.max_time={max_time}: expected days, hours, minutes and seconds, as 00:12:00:00"
        ) from error


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
