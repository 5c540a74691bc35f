"""A config as Hydra composed it: plain values, overrides, choices."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from l2v.config.targets import check_definitions, check_overrides, check_places, check_trust
from l2v.config.typed import parsed, take_texts
from l2v.errors import L2VError, first_line
from l2v.trust import allowed_modules


def with_model_of_init(arguments: Sequence[str]) -> list[str]:
    """``init_from=<run>`` without ``model=`` takes the run's model, with the overrides that it was given.

    Settings of the model that are given beside it are changed, as anywhere. A sweep over several runs is left as it is:
    each of its points asks :func:`model_of_init`.

    Raises:
        L2VError: they name code, see :func:`~l2v.config.targets.check_overrides`.
    """
    given = [override for argument in arguments if (override := parsed(argument)) is not None]
    runs = [one.value() for one in given if one.key_or_group == "init_from" and not one.is_sweep_override()]
    return [*arguments, *model_of_init(runs[-1] if runs else None, arguments)]


def model_of_init(init_from: Any, given: Sequence[str]) -> list[str]:
    """The overrides of ``model`` that a run was given and the command line says nothing else for.

    Args:
        init_from: the setting, as Hydra reads it.
        given: the command line, or the overrides of a point of a sweep.

    Raises:
        L2VError: they name code, see :func:`~l2v.config.targets.check_overrides`.
    """
    keys = {override.lstrip("+~").partition("=")[0] for override in given}
    if not isinstance(init_from, str) or keys & {"model", "model@model"}:
        return []
    record = Path(init_from).expanduser() / "run.json"
    if not record.is_file():
        return []
    from l2v.runs.files import read_json

    overrides = [str(o) for o in read_json(record).get("overrides", []) if re.match(r"\+*model[.=]", str(o))]
    check_overrides(overrides, allowed_modules(), f"init_from={init_from}")
    return [override for override in overrides if override.lstrip("+~").partition("=")[0] not in keys]


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
        if isinstance(error, InterpolationToMissingValueError):  # which has the name of the one that asks
            key = str(error).partition("value: ")[2].split()[0]
        if "missing" in type(error).__name__.lower() or "Missing" in str(error):
            raise L2VError(f"{key}: must be given, as {key}=...") from None
        raise L2VError(f"{key}: {first_line(error)}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def compose(name: str, overrides: list[str]) -> dict[str, Any]:
    """Another of the configs in ``conf/``, from inside a task."""
    config = hydra.compose(config_name=name, overrides=overrides)
    take_texts(config, overrides, name)
    return plain(config)


def choices() -> dict[str, str]:
    """The option chosen in each group."""
    chosen = HydraConfig.get().runtime.choices
    return {group: option for group, option in chosen.items() if not group.startswith("hydra/")}


def search_overrides() -> list[str]:
    """What has another program, or another config, look for options where this one does: a user's own folders."""
    sources = HydraConfig.get().runtime.config_sources
    own = [f"{one.schema}://{one.path}" for one in sources if one.provider not in ("hydra", "main", "schema")]
    return [f"hydra.searchpath=[{','.join(own)}]"] if own else []


def is_multirun() -> bool:
    """Whether this is one point of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def point_overrides(typed: Sequence[str]) -> list[str]:
    """In what a point of a sweep differs from the others.

    Args:
        typed: the command line of the whole sweep.
    """
    own = [override for override in overrides() if override not in typed]
    own = [override for override in own if not override.startswith("swept=")]  # recipe.py's own, as is given
    return [re.sub(r"^\+given\.o\d+='?(.*?)'?$", r"\1", override) for override in own]


def sweeper() -> str:
    """What chooses the points of the sweep: ``basic`` is Hydra's own, others optimise what the task returns."""
    return str(HydraConfig.get().runtime.choices["hydra/sweeper"])


def sweeper_settings() -> list[str]:
    """The keys that a config sweeps over by itself, in ``hydra.sweeper.params``."""
    return list(HydraConfig.get().sweeper.get("params") or {}) if is_multirun() else []


def overrides() -> list[str]:
    """What the command line changed."""
    return list(HydraConfig.get().overrides.task)


def read_saved(file: Path, where: str) -> dict[str, Any]:
    """A run's ``config.yaml`` as data: its values, with nothing resolved.

    Raises:
        L2VError: it cannot be read, or is no dictionary.
    """
    try:
        saved = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise L2VError(f"{where}: its {file.name} cannot be read ({first_line(error)})") from None
    if not isinstance(saved, dict):
        raise L2VError(f"{where}: its {file.name} is not a config")
    return {str(key): value for key, value in saved.items()}


def merge_overrides(
    saved: dict[str, Any], composed: DictConfig, given: list[str], folder: Path, where: str
) -> DictConfig:
    """A run's saved config with the overrides that were given with ``resume=``.

    An override of a group (trainer=ddp) replaces the whole group. What is kept of the saved config may name no code but
    what :mod:`l2v.config.targets` allows, and its texts stay as they are: ``${...}`` in them stands for itself.

    Args:
        saved: as :func:`read_saved` returns it.
        composed: of this command.
        given: its overrides.
        folder: of the run, which may have been moved since; its loggers write in it.
        where: the override that the run was named by, for errors.

    Raises:
        L2VError: the saved config is cut off, names other code, trusts that of its model, or writes outside of the
            run; or an override would change nothing, or half of what it says.
    """
    keys = [override.lstrip("+~").split("=", 1)[0] for override in given]
    keys = [key for key in keys if key not in ("resume", "debug")]
    if missing := [str(key) for key in composed if key not in saved and key not in keys]:
        raise L2VError(
            f"{where}: its config.yaml has no {missing[0]}, so it is cut off or of another version; put a copy in its "
            f"place, or give {', '.join(f'{key}=...' for key in missing)}"
        )
    _check_taken(saved, composed, keys, where)
    kept = _without(saved, keys)
    check_definitions(kept, allowed_modules(), where)
    check_trust(kept, where)
    loggers = _moved(kept.get("logger"), str(saved.get("run_dir")), str(folder))
    check_places(loggers, folder, f"{where}: logger")
    merged = OmegaConf.create(_escaped({**kept, **({"logger": loggers} if loggers else {})}))
    for key in keys:
        OmegaConf.update(merged, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return merged


_CHOOSES_FOR_OTHERS = re.compile(r"(experiment|loss|task|quirks|model\.stages)(?![^.])")
"""Settings that others are made of when a run begins."""
_OF_THE_STAGE = {
    **{name: name for name in ("pooling", "template", "pooled_tokens", "special_tokens")},
    "separator": "encoder_separator",
}
"""Settings of a model that stages take when a run begins, and what they call them."""


def _check_taken(saved: dict[str, Any], composed: DictConfig, keys: Sequence[str], where: str) -> None:
    """Refuse overrides of what other settings were made of when the run began: these stay as they were."""
    for key in keys:
        if _CHOOSES_FOR_OTHERS.match(key):
            raise L2VError(
                f"{where}: {key}= chooses for other settings when a run begins, and these stay as they are; give them "
                "themselves, as stage.padding_side= or stage.loss.temperature="
            )
        group, _, name = key.partition(".")
        own = _OF_THE_STAGE.get(name)
        if group != "model" or own not in saved["stage"] or f"stage.{own}" in keys:
            continue
        if OmegaConf.select(composed, key) != saved["model"].get(name):
            raise L2VError(
                f"{where}: {key}= is of the encoder that comes out, and the stage has its own; give stage.{own}=, too"
            )


def _without(node: Any, keys: Sequence[str], prefix: str = "") -> Any:
    """A copy of nested dictionaries without what stands under these dotted names."""
    if not isinstance(node, dict):
        return node
    named = {key: f"{prefix}.{key}".lstrip(".") for key in node}
    return {key: _without(value, keys, named[key]) for key, value in node.items() if named[key] not in keys}


def _moved(node: Any, before: str, now: str) -> Any:
    """A copy in which paths into a folder lead into the one that it is now."""
    if isinstance(node, dict):
        return {key: _moved(value, before, now) for key, value in node.items()}
    if isinstance(node, str) and (node == before or node.startswith(f"{before}/")):
        return now + node.removeprefix(before)
    return node


def _escaped(node: Any) -> Any:
    """A copy in which no text is an interpolation."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(item) for item in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", node)
    return node


def process_rank() -> int:
    """This process's number among those of one training, before any of them talks to another."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return max(int(os.environ.get(name, 0)) for name in names)
