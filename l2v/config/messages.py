"""From any mistake to one line."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from l2v.config.search import options, with_bases
from l2v.errors import L2VError, first_line, is_out_of_memory
from l2v.extras import install_hint


def one_line(error: BaseException, folders: Sequence[Path]) -> str:
    """What went wrong, for a user, in one line.

    Args:
        error: as it was raised; what led to it is looked at too.
        folders: where options are looked for, l2v's and the user's own.
    """
    for known in _chain(error):
        if isinstance(known, L2VError):
            return str(known)
        if is_out_of_memory(known):
            return _out_of_memory(known)
    text = str(error)
    if found := re.search(r"Could not find '([\w/@.-]+)/([^'/]+)'", text):
        group, option = found[1].split("@")[0], found[2]
        return no_such_option(group, option, folders)
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found[1] or found[2]
        if owners := _options_with(key, folders):
            return f"{key}: not a setting of the chosen options; it is one of {', '.join(owners)}, so choose that too"
        if key in (keys := list(_keys(folders))):
            return f"{key}: holds no such keys yet; add them one by one, as +{key}.<key>=<value>"
        return f"{key}: no such setting{guess(key, keys)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; an override is key=value"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]}: expected one option; several are a sweep: add -m"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error}{install_hint(error.name)}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    return f"{type(error).__name__}: {first} (debug=true shows where)"


def no_such_option(group: str, option: str, folders: Sequence[Path]) -> str:
    known = list(options(group, folders))
    if plugin := _PLUGINS.get(f"{group}={option}"):
        return f"{group}={option}: needs a plugin of Hydra that is not installed; `pip install {plugin}`"
    there = f"; there are {', '.join(known)}" if known else ""
    return f"{group}={option}: no such option{guess(option, known)}{there}"


def _out_of_memory(error: BaseException) -> str:
    """What was short, who holds it, and what takes less."""
    told = first_line(error)
    found = re.search(r"Tried to allocate (.*?)\. GPU (\d+) has a total capacity of (.*?) of which (.*?) is free", told)
    if found:
        told = f"{found[1]} were asked for, of GPU {found[2]}'s {found[3]} {found[4]} were free"
        others = re.findall(r"Process \d+ has ([\d.]+) (MiB|GiB)", str(error))
        held = sum(float(number) / (1024 if unit == "MiB" else 1) for number, unit in others)
        if held >= 1:
            told += f"; other processes hold {held:.1f} GiB"
    return (
        f"out of memory ({told}). For training, `l2v plan` with the same settings tells what fits and what to change, "
        "as model.gradient_checkpointing=true or fewer stage.micro_batch_tokens; elsewhere choose a smaller batch_size"
    )


_PLUGINS = {
    "hydra/sweeper=optuna": "'l2v[sweep]'",
    "hydra/launcher=joblib": "'l2v[sweep]'",
    "hydra/launcher=submitit_local": "'l2v[sweep]'",
    "hydra/launcher=submitit_slurm": "'l2v[sweep]'",
    "hydra/launcher=ray": "hydra-ray-launcher",
}
"""Option -> the package that brings it."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def guess(word: str, options: list[str]) -> str:
    match = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f" (did you mean {match[0]}?)" if match else ""


def _keys(folders: Sequence[Path]) -> Iterator[str]:
    """Every setting's dotted name, for guessing what a typo meant."""
    for conf in folders:
        for file in sorted(conf.rglob("*.yaml")):
            at_top = file.parent == conf or "# @package _global_" in file.read_text(encoding="utf-8")
            group = "" if at_top else file.parent.relative_to(conf).as_posix().replace("/", ".") + "."
            if group:
                yield group.rstrip(".")
            yield from (group + key for key in _settings(file) if not key.endswith(("defaults", "_target_")))


def _options_with(key: str, folders: Sequence[Path]) -> list[str]:
    """The options of a group that have a setting, as group=option."""
    group, _, name = key.partition(".")
    return [
        f"{group}={option}"
        for option, file in options(group, folders).items()
        if any(name in _settings(part) for part in with_bases(file))
    ]


def _settings(file: Path) -> Iterator[str]:
    return _flat(OmegaConf.to_container(OmegaConf.load(file)))


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")
