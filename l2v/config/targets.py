"""Which code a config may name that was read from a run folder or a recipe, and not written by the user.

A saved config is data: nothing in it runs that is not a stage, data set, task, adapter, strategy or logger.
"""

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from l2v.config.build import find_target
from l2v.config.search import search_path, with_bases
from l2v.errors import L2VError
from l2v.trust import VARIABLE, allowed_modules, is_inside

_ROOMS = (
    "l2v.data",
    "l2v.distillation",
    "l2v.evaluation",
    "l2v.losses",
    "l2v.models.adapters",
    "l2v.pooling",
    "l2v.probing",
    "l2v.stages",
    "l2v.training.deepspeed",
    "l2v.training.strategies",
)
"""Of l2v: what a config is made of. Other rooms write files, start processes and speak to the hub."""
_LIBRARIES = (
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer.trainer",
    "lightning.pytorch.trainer.Trainer",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.strategies",
    "torch.nn",
    "torch.optim",
    "peft",
)
_KINDS = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "trainer.strategy": "lightning.pytorch.strategies.Strategy",
    "logger.*": "lightning.pytorch.loggers.Logger",
    "stage": "l2v.stages.stage.Stage",
}
"""Place -> the class that its target is, or derives from."""
_LOGGERS = {
    "CSVLogger": ("name", "version", "prefix", "save_dir", "flush_logs_every_n_steps"),
    "TensorBoardLogger": ("name", "version", "prefix", "save_dir", "log_graph", "default_hp_metric"),
    "WandbLogger": ("name", "project", "prefix", "save_dir", "offline", "tags", "group", "job_type", "notes"),
}
"""Loggers that a config may name, and their settings: none sends anything but to the user's own account, and server."""
_ARGUMENT = re.compile(r"allow_modules=\[?([^\[\]]*)\]?")


def take_allowed_modules(arguments: Sequence[str]) -> list[str]:
    """The arguments without ``allow_modules=[my_package]``, whose modules this process and its children trust then.

    It is taken off before Hydra composes: a config can neither set it nor keep it.

    Raises:
        L2VError: a value that is no name of a module.
    """
    kept = [argument for argument in arguments if not argument.startswith("allow_modules=")]
    named = list(allowed_modules())
    for argument in arguments:
        if argument.startswith("allow_modules="):
            found = _ARGUMENT.fullmatch(argument)
            names = [name.strip(" '\"") for name in found[1].split(",")] if found else [""]
            if not all(all(part.isidentifier() for part in name.split(".")) for name in names):
                raise L2VError(f"{argument}: expected names of modules, as allow_modules=[my_package]")
            named += names
    if named:
        os.environ[VARIABLE] = ",".join(dict.fromkeys(named))
    return kept


def check_targets(config: Any, allowed: Sequence[str], where: str) -> None:
    """Fail where a config names code that it may not; every place is looked at, and nothing is imported.

    Args:
        config: plain dictionaries, lists and values.
        allowed: modules that the user trusts; with each, what is inside of it.
        where: the override that the config was read for, for errors.

    Raises:
        L2VError: naming the place, the target and how to allow it.
    """
    for place, target in _targets(config):
        if not isinstance(target, str) or not is_inside(target, (*_ROOMS, *_LIBRARIES, *allowed)):
            raise _refusal(place, target, where)
    _check_loggers(config, allowed, where)


def _check_loggers(config: Any, allowed: Sequence[str], where: str) -> None:
    """Fail where a logger would send what is trained, or the user's keys, to where a config says."""
    own = {key: value for key, value in leaves(config) if re.fullmatch(r"logger\.[^.]+\.[^.]+", key)}
    for key, value in own.items():
        name, _, setting = key.rpartition(".")
        target = str(own.get(f"{name}._target_", ""))
        if is_inside(target, allowed):
            continue
        kind = target.rpartition(".")[2]
        known = {*_LOGGERS.get(kind, ())} if target else {one for known in _LOGGERS.values() for one in known}
        if setting not in ("_target_", *known):
            raise L2VError(
                f"{where}: {key}={value} may send what is trained elsewhere, which is yours to say: name it again, as "
                f"+{key}=..., or choose logger="
            )
        if setting == "_target_" and kind not in _LOGGERS:
            raise L2VError(
                f"{where}: {key}={value} may send what is trained elsewhere, which is yours to say: choose logger= "
                "again"
            )


def check_definitions(config: Any, allowed: Sequence[str], where: str) -> None:
    """Import what the targets of a config lead to, and fail unless it is what its name promises.

    That is a class, defined where a config may take it from and of the kind that its place asks for; or a function of
    l2v's that makes one; or any class or function that is defined in a module of ``allowed``.

    Raises:
        L2VError: see :func:`check_targets`, which is called first; or a target cannot be imported.
    """
    check_targets(config, allowed, where)
    for place, name in _targets(config):
        target = find_target(name, f"{where}: {place}")
        if not (_is_trusted(target, allowed) or _makes_a_part(target)):
            raise _refusal(place, name, where)
        if (kind := _kind(place)) is not None and isinstance(target, type) and not issubclass(target, kind):
            raise L2VError(f"{where}: {place}._target_={name}: expected a {kind.__name__}")


def check_overrides(overrides: Sequence[str], allowed: Sequence[str], where: str) -> None:
    """:func:`check_targets` for overrides that were read from a file: those of a recipe, or of a run's record.

    They hold values: no interpolation, no setting of Hydra, no trust in a model's code.

    Raises:
        L2VError: naming the override.
    """
    for override in overrides:
        if re.match(r"[+~]*hydra\b|-", override):
            raise L2VError(f"{where}: {override}: is for the command line only")
        if "${" in override:
            raise L2VError(f"{where}: {override}: holds an interpolation; write what it stands for")
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException:
            raise L2VError(f"{where}: {override}: cannot be read; an override is key=value") from None
        if parsed.is_sweep_override():
            raise L2VError(f"{where}: {override}: holds several values; give one")
        if "." not in parsed.key_or_group and _leads_out(parsed.value()):
            raise L2VError(f"{where}: {override}: leads out of the folders of configs")
        setting = {parsed.key_or_group: parsed.value()}
        check_targets(setting, allowed, where)
        check_trust(setting, where)


def check_recipe(arguments: Sequence[str], name: str) -> None:
    """:func:`check_definitions` for the file of the recipe that is chosen, and those that it is made from.

    They set nothing of Hydra, which makes what it is told before any task runs, and make no nodes of texts.

    Args:
        arguments: of the command line.
        name: of the primary config.

    Raises:
        L2VError: naming the recipe.
    """
    chosen = [value for key, _, value in (argument.partition("=") for argument in arguments) if key == "recipe"]
    for folder in search_path(arguments, name) if chosen else ():
        recipes = folder / "recipe"
        named = (recipes / f"{option}.yaml" for value in chosen for option in re.findall(r"[\w./-]+", value))
        for file in recipes.rglob("*.yaml") if any("glob(" in value for value in chosen) else named:
            for part in with_bases(file) if file.is_file() else ():
                _check_part(part, f"recipe={file.stem}")


def _leads_out(option: Any) -> bool:
    """Whether the name of an option, or one of several, is a path to another folder."""
    if isinstance(option, list):
        return any(map(_leads_out, option))
    return isinstance(option, str) and ".." in Path(option).parts


def _check_part(file: Path, where: str) -> None:
    text = file.read_text(encoding="utf-8")
    if re.search(r"(?m)^[^#\n]*\bhydra\b|^#\s*@package.*\bhydra\b", text):
        raise L2VError(f"{where}: {file} sets hydra, which is for the command line only")
    if found := re.search(r"\$\{\s*oc\.(create|decode)\b", text):
        raise L2VError(f"{where}: {file} has {found[0]}...}}, which makes settings of a text; write what it stands for")
    settings = OmegaConf.to_container(OmegaConf.load(file))
    for key, value in leaves(settings):
        if key.startswith("defaults.") and _leads_out(value):
            raise L2VError(f"{where}: {file}: {key}={value} leads out of the folders of configs")
    check_definitions(settings, allowed_modules(), where)
    check_trust(settings, where)


def check_trust(config: Any, where: str) -> None:
    """Fail where a config that was read says that code which comes with a model may run.

    Raises:
        L2VError: naming the setting.
    """
    for key, value in leaves(config):
        if key.rpartition(".")[2] == "trust_remote_code" and value:
            raise L2VError(f"{where}: {key}={value} lets code of the model run, which is yours to say: {key}=true")


def check_places(config: Any, folder: Path, where: str) -> None:
    """Fail where a config that was read names a folder to write to, or a path, that lies outside of another folder.

    Raises:
        L2VError: naming the setting.
    """
    for key, value in leaves(config):
        if not isinstance(value, str):
            continue
        is_path = key.rpartition(".")[2].endswith("dir") or Path(value).is_absolute() or ".." in Path(value).parts
        if is_path and not Path(value).resolve().is_relative_to(folder.resolve()):
            raise L2VError(f"{where}.{key}={value} lies outside of the run, which is yours to say: name it again")


def _targets(config: Any) -> Iterator[tuple[str, Any]]:
    """The place and the name of every target."""
    for key, value in leaves(config):
        place, _, last = key.rpartition(".")
        if last == "_target_":
            yield place, value


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of every key, those with further ones inside too."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(node, dict):
        items = iter(node.items())
    elif isinstance(node, list):
        items = iter(enumerate(node))
    for key, value in items:
        name = f"{where}.{key}" if where else str(key)
        yield name, value
        yield from leaves(value, name)


def _is_trusted(target: Any, allowed: Sequence[str]) -> bool:
    """Whether it is a class from where configs take them, or anything that a trusted module defines."""
    home = getattr(target, "__module__", None)
    if inspect.isclass(target):
        return is_inside(str(home), (*_ROOMS, *_LIBRARIES, *allowed))
    return inspect.isfunction(target) and is_inside(str(home), allowed)


def _makes_a_part(target: Any) -> bool:
    """Whether it is a function of l2v's that returns what a config is made of, as ``l2v.probing.words.conll2003``."""
    if not inspect.isfunction(target) or not is_inside(target.__module__, _ROOMS):
        return False
    made = get_type_hints(target).get("return")
    return inspect.isclass(made) and is_inside(made.__module__, _ROOMS)


def _kind(place: str) -> type | None:
    pattern = f"{place.partition('.')[0]}.*" if place.count(".") == 1 and place not in _KINDS else place
    if pattern not in _KINDS:
        return None
    module, _, name = _KINDS[pattern].rpartition(".")
    kind: type = getattr(importlib.import_module(module), name)
    return kind


def _refusal(place: str, target: Any, where: str) -> L2VError:
    module, _, _ = str(target).rpartition(".")
    package = module.partition(".")[0]
    if package in ("l2v", "lightning", "torch", "peft"):
        package = module  # not all that is in them
    return L2VError(
        f"{where}: {place}._target_={target} is refused: what is read from a file may name stages, data, tasks, "
        "adapters of l2v and trainers, strategies, loggers of lightning only; if it is yours, add "
        f"allow_modules=[{package}]"
    )
