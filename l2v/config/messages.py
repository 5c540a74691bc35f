"""From any mistake to one line."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from l2v.errors import L2VError


def one_line(error: BaseException, conf: Path) -> str:
    """What went wrong, for a user, in one line."""
    for known in _chain(error):
        if isinstance(known, L2VError):
            return str(known)
    text = str(error)
    if found := re.search(r"Could not find '([\w/@.-]+)/([^'/]+)'", text):
        group, option = found[1].split("@")[0], found[2]
        options = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        return f"{group}={option}: no such option{guess(option, options)}; there are {', '.join(options)}"
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found[1] or found[2]
        if owners := _options_with(key, conf):
            return f"{key}: not a setting of the chosen options; it is one of {', '.join(owners)}, so choose that too"
        return f"{key}: no such setting{guess(key, list(_keys(conf)))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; an override is key=value, with quotes around odd values: key='a,b'"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    return f"{type(error).__name__}: {first} (debug=true shows where)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def guess(word: str, options: list[str]) -> str:
    match = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f" (did you mean {match[0]}?)" if match else ""


def _keys(conf: Path) -> Iterator[str]:
    """Every setting's dotted name, for guessing what a typo meant."""
    for file in sorted(conf.rglob("*.yaml")):
        group = "" if file.parent == conf else file.parent.relative_to(conf).as_posix().replace("/", ".") + "."
        if group:
            yield group.rstrip(".")
        yield from (
            group + key
            for key in _flat(OmegaConf.to_container(OmegaConf.load(file)))
            if not key.endswith(("defaults", "_target_"))
        )


def _options_with(key: str, conf: Path) -> list[str]:
    """The options of a group that have a setting, as group=option."""
    group, _, name = key.partition(".")
    files = sorted((conf / group).glob("*.yaml"))
    return [f"{group}={f.stem}" for f in files if name in _flat(OmegaConf.to_container(OmegaConf.load(f)))]


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")
