"""A config as Hydra composed it: plain values, overrides, choices."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from l2v.errors import L2VError, first_line


def with_model_of_init(arguments: list[str]) -> list[str]:
    """``init_from=<run>`` without ``model=`` takes the run's model, with the overrides that it was given."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    record = Path(given.get("init_from", "")).expanduser() / "run.json"
    if "init_from" not in given or any(re.match(r"\+*model\b", key) for key in given) or not record.is_file():
        return arguments
    from l2v.runs.files import read_json

    overrides = read_json(record).get("overrides", [])
    return [*arguments, *(o for o in overrides if re.match(r"\+*model\b", o))]


# a composed config


def plain(config: DictConfig, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The config as plain dictionaries and lists, with interpolations resolved.

    Args:
        config: as Hydra composed it.
        without: dotted names of what is left out, where it is there.

    Raises:
        L2VError: a setting that must be given is missing.
    """
    config = config.copy()
    for key in without:
        group, _, name = key.rpartition(".")
        if isinstance(node := OmegaConf.select(config, group), DictConfig):
            with open_dict(node):
                node.pop(name, None)
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "a setting"
        if "missing" in type(error).__name__.lower() or "Missing" in str(error):
            raise L2VError(f"{key}: must be given, as {key}=...") from None
        raise L2VError(f"{key}: {first_line(error)}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def compose(name: str, overrides: list[str]) -> dict[str, Any]:
    """Another of the configs in ``conf/``, from inside a task."""
    return plain(hydra.compose(config_name=name, overrides=overrides))


def choices() -> dict[str, str]:
    """The option chosen in each group."""
    chosen = HydraConfig.get().runtime.choices
    return {group: option for group, option in chosen.items() if not group.startswith("hydra/")}


def overrides() -> list[str]:
    """What the command line changed."""
    return list(HydraConfig.get().overrides.task)


def merge_overrides(saved: DictConfig, composed: DictConfig, given: list[str]) -> DictConfig:
    """A run's saved config with the overrides that were given with ``resume=``.

    An override of a group (trainer=ddp) replaces the whole group.
    """
    merged = saved.copy()
    for override in given:
        key = override.lstrip("+~").split("=", 1)[0]
        if key not in ("resume", "debug"):
            OmegaConf.update(merged, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return merged


def process_rank() -> int:
    """This process's number among those of one training, before any of them talks to another."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return max(int(os.environ.get(name, 0)) for name in names)
