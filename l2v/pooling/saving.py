"""A pooling of one's own in a saved encoder: its class and settings as JSON, its weights as safetensors."""

import importlib
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from l2v.errors import L2VError, first_line
from l2v.pooling.base import Pooling
from l2v.runs.adapter_folders import POOLING_WEIGHTS
from l2v.runs.files import make_readable
from l2v.trust import VARIABLE, allowed_modules, is_inside


def pooling_record(pooling: Pooling) -> dict[str, Any]:
    """Class and settings, as a config has them."""
    kind = type(pooling)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **pooling.settings()}


def save_pooling(pooling: Pooling, folder: Path) -> None:
    """Write the weights, if there are any, into a folder that is made where it is not there.

    Raises:
        L2VError: its class is of this program alone, so that no other could load what was saved with it.
    """
    if type(pooling).__module__ == "__main__":
        raise L2VError(f"pooling={type(pooling).__qualname__}: the class is defined in __main__; put it into a module")
    weights = {name: value.detach().float().cpu().contiguous() for name, value in pooling.state_dict().items()}
    if weights:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / POOLING_WEIGHTS)
        make_readable([folder / POOLING_WEIGHTS], folder)


def load_pooling(record: dict[str, Any], hidden_size: int, folder: Path | None, where: str) -> Pooling:
    """The pooling of a saved encoder.

    Args:
        record: what :func:`pooling_record` gave.
        hidden_size: of a token state.
        folder: with the weights.
        where: the file that holds the record, for errors.

    Raises:
        L2VError: its class may not be imported, is no pooling, or the weights do not fit.
    """
    settings = {name: value for name, value in record.items() if name != "_target_"}
    try:
        pooling = _class_of(str(record.get("_target_")), where)(**settings)
    except TypeError as error:
        raise L2VError(f"{where}: pooling: {first_line(error)}") from None
    pooling.build(hidden_size)
    load_weights(pooling, folder, where)
    return pooling.eval()


def load_weights(pooling: Pooling, folder: Path | None, where: str) -> None:
    """Put saved weights into a pooling that was built.

    Raises:
        L2VError: they are missing or do not fit.
    """
    if not pooling.state_dict():
        return
    if folder is None or not (folder / POOLING_WEIGHTS).is_file():
        raise L2VError(f"{where}: the weights of its pooling ({POOLING_WEIGHTS}) are missing")
    try:
        pooling.load_state_dict(load_file(folder / POOLING_WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise L2VError(
            f"{folder / POOLING_WEIGHTS}: does not fit {type(pooling).__name__} ({first_line(error)})"
        ) from None


def _class_of(target: str, where: str) -> type[Pooling]:
    """The class that a file names: of l2v, of a module that the user named, or of one that was imported already."""
    module, _, name = target.rpartition(".")
    root = module.partition(".")[0]
    if module not in sys.modules and not is_inside(module, ("l2v", *allowed_modules())):
        raise L2VError(
            f"{where}: its pooling {target} is code of another package; import {root or 'it'} first, or name it in "
            f"{VARIABLE}, if you trust it"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise L2VError(f"{where}: its pooling {target} cannot be imported ({first_line(error)})") from None
    if not (isinstance(found, type) and issubclass(found, Pooling)):
        raise L2VError(f"{where}: {target} is no l2v.pooling.Pooling")
    return found
