"""The command line as it was typed: a shell takes its quotes away, and Hydra reads commas, numbers and brackets."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from l2v.config.build import check_value, find_target, parameters_of
from l2v.config.search import groups, search_path
from l2v.errors import L2VError

_SETTING = re.compile(r"\+{0,2}(?!hydra\b)[\w.]+=", re.ASCII)
"""The beginning of an override that gives a setting a value; one of a group may look the same."""
_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")
"""Flags of Hydra's after which another argument is their value."""

_OF_A_RUN = re.compile(r"^\+{0,2}((?:model|stage|data|adapter|trainer)\.[\w.]+=)", re.ASCII)
"""The beginning of an override of one of the groups of which all settings are checked when they are built."""
_TARGETS = {
    "train": {"model": "l2v.training.settings.Model"},
    "encode": {"": "l2v.embedding.job.Encoding"},
    "mine": {"": "l2v.mining.settings.Mining"},
    "contamination": {"texts": "l2v.data.texts.FileTexts"},
}
"""Program -> node without a ``_target_`` -> what checks its settings."""
_ENCODER = "l2v.models.settings.EncoderSettings"
"""What checks the settings of ``conf/common/encoder.yaml``."""
_SET = re.compile(r"data\.sets\.[^.]+")
_SETS = "l2v.data.triplets.options.SetOptions"
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("runs_dir", "run_dir", "run", "encoder"), str),
    **dict.fromkeys(("name", "resume", "output", "push", "folder", "objective", "file", "suite"), str | None),
    "init_from": str | list[str] | None,
}
"""Of settings that no signature has, by the last part of their names."""


def parsed(argument: str) -> Override | None:
    """An override as Hydra reads it; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def quoted(text: str) -> str:
    """A text in the quotes that have Hydra take it as it stands."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)
    trailing = re.search(r"\\*$", escaped)
    return "'" + escaped + (trailing[0] if trailing else "") + "'"


def as_typed(arguments: Sequence[str], name: str) -> list[str]:
    """The command line with what Hydra cannot read, or reads as several values without ``-m``, in quotes of its own,
    and with a home folder in ``runs_dir`` written out.

    Args:
        arguments: of the command line; or overrides.
        name: of the primary config.
    """
    sweeps = any(argument in ("-m", "--multirun") for argument in arguments)
    made: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        setting = _SETTING.match(argument)
        if setting is None or previous in _WITH_VALUE:
            made.append(argument)
            continue
        if setting[0].strip("+=") == "runs_dir":  # of which other settings are made
            argument = setting[0] + ",".join(map(os.path.expanduser, argument[setting.end() :].split(",")))
        override = parsed(argument)
        if override is None:
            with_quotes = setting[0] + _with_quotes(argument[setting.end() :], several=sweeps)
            if (override := parsed(with_quotes)) is not None:
                argument = with_quotes
        several = override is not None and override.is_sweep_override() and not sweeps
        if several and setting[0].strip("+=") in groups(search_path(arguments, name)):
            several = False  # which is Hydra's to refuse
        names_folder = override is not None and isinstance(override.value(), float | int)  # as 1.10 and 2026_11_25
        if override is None or several or (names_folder and setting[0].strip("+=") in _TYPES):
            argument = setting[0] + quoted(argument[setting.end() :])
        made.append(argument)
    return made


def _with_quotes(text: str, *, several: bool) -> str:
    """A list or a dictionary, or ``several`` values, in which a text with letters beyond ASCII has quotes of its own.

    Hydra's grammar has no such letters. Anything else comes back as it is.
    """
    if text[:1] not in ("[", "{") and not (several and "," in text):
        return text
    parts = re.split(r"""('[^']*'|"[^"]*")""", text)
    parts[::2] = [
        re.sub(r"[^\[\]{},:\s](?:[^\[\]{},:]*[^\[\]{},:\s])?", lambda found: _quoted_if_odd(found[0]), part)
        for part in parts[::2]
    ]
    return "".join(parts)


def _quoted_if_odd(text: str) -> str:
    return text if text.isascii() else quoted(text)


def as_resumed(arguments: Sequence[str]) -> list[str]:
    """The command line in which a setting beside ``resume=<run>`` need be none of the options that Hydra composes.

    It is one of the options that the run was begun with. Whether there is such a one is seen when they are built.

    Args:
        arguments: of the command line of train.py, as :func:`as_typed` returns them.
    """
    if not any(re.match(r"\+{0,2}resume=(?!null$)", argument) for argument in arguments):
        return list(arguments)
    return [re.sub(_OF_A_RUN, r"++\1", argument) for argument in arguments]


def take_texts(config: DictConfig, overrides: Sequence[str], name: str) -> None:
    """Give settings that are texts what was typed for them, where Hydra reads a number, a list or true.

    Args:
        config: as Hydra composed it; changed in place.
        overrides: that it was composed with.
        name: of the primary config.
    """
    for argument in overrides:
        setting, override = _SETTING.match(argument), parsed(argument)
        if setting is None or override is None or override.is_sweep_override():
            continue
        key, text, value = setting[0].strip("+="), argument[setting.end() :], override.value()
        as_it_is = value is None or value == text or text[:1] in ("'", '"') or "${" in text
        if not as_it_is and _wants(_type_of(config, key, name), value, text):
            OmegaConf.update(config, key, text, merge=False)


def _wants(annotation: Any, value: Any, text: str) -> bool:
    """Whether a setting takes the text and not the value; a list where it takes lists is one."""
    if isinstance(value, str):
        return value.strip() == text.strip() and _accepts(annotation, text)
    kinds = [get_origin(kind) or kind for kind in get_args(annotation) or (annotation,)]
    if isinstance(value, list | dict) and any(kind in (list, tuple, dict) for kind in kinds):
        return False
    return str in kinds and not _accepts(annotation, value)


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        check_value(annotation, value, "")
    except L2VError:
        return False
    return True


def _type_of(config: DictConfig, key: str, name: str) -> Any:
    """The annotation of a setting, of what its node is handed to; ``object`` where nobody says it."""
    node, _, last = key.rpartition(".")
    holder = OmegaConf.select(config, node) if node else config
    targets = [holder.get("_target_")] if isinstance(holder, DictConfig) and node else []
    targets += [_TARGETS.get(name, {}).get(node), _SETS if _SET.fullmatch(node) else None]
    targets += [_ENCODER] if not node and name in ("encode", "evaluate", "mine", "export", "verify", "depth") else []
    for target in targets:
        takes: Callable[..., Any] | None = find_target(target, node) if target else None
        if takes is not None and last in (found := parameters_of(takes)[0]):
            return found[last][0]
    return _TYPES.get(last, object)
