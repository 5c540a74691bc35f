"""Where options are looked for: l2v's configs and the user's own, in the order in which Hydra looks."""

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_SEARCH_PATH = "hydra.searchpath"


def conf_folder() -> Path:
    """Where l2v's configs are: inside of an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def search_path(arguments: Sequence[str], name: str | None = None) -> list[Path]:
    """The folders in which options are looked for; of two with a name, the first is taken.

    Args:
        arguments: of the command line: ``--config-dir`` and ``hydra.searchpath=`` are read.
        name: of the primary config, which may set ``hydra.searchpath`` too.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default=name)
    given, others = parser.parse_known_args(list(arguments))
    folders = [conf_folder().resolve(), *([Path(given.config_dir)] if given.config_dir else [])]
    entries = _of_command_line(others)
    if entries is None:
        entries = _of_primary(given.config_name, folders)
    return [*folders, *(folder for entry in entries for folder in _folders(entry))]


def _of_command_line(arguments: Sequence[str]) -> list[Any] | None:
    for argument in arguments:
        if argument.lstrip("+").startswith(f"{_SEARCH_PATH}="):
            try:
                found = OverridesParser.create().parse_override(argument).value()
            except HydraException:
                return []
            return found if isinstance(found, list) else [found]
    return None


def _of_primary(name: str | None, folders: list[Path]) -> list[Any]:
    file = next(
        (file for folder in folders if (file := folder / f"{str(name).removesuffix('.yaml')}.yaml").is_file()), None
    )
    if file is None:
        return []
    try:
        found = OmegaConf.select(OmegaConf.load(file), _SEARCH_PATH, default=[])
        container = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_list(found) else []
        return container if isinstance(container, list) else []
    except (OSError, OmegaConfBaseException):
        return []


def _folders(entry: Any) -> list[Path]:
    """Those of an entry of the search path: file://folder, pkg://package or a folder."""
    scheme, _, place = str(entry).rpartition("://")
    if scheme != "pkg":
        return [Path(place)]
    try:
        spec = importlib.util.find_spec(place.replace("/", "."))
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [] if spec else [])]


def offer_groups(name: str) -> None:
    """Let the help of a program (``conf/hydra/help``) list the groups as ``${groups:}``: the user's own, and no bases.

    Args:
        name: of the primary config.
    """

    def listed() -> str:
        folders = search_path(sys.argv[1:], name)
        return "\n".join(f"{group}: {', '.join(options(group, folders))}" for group in groups(folders))

    OmegaConf.register_new_resolver("groups", listed, replace=True)


def groups(folders: Sequence[Path]) -> list[str]:
    """The groups that have options, without Hydra's own."""
    found = {folder.name for conf in folders if conf.is_dir() for folder in conf.iterdir() if folder.is_dir()}
    return sorted(name for name in found if name not in ("common", "hydra") and options(name, folders))


def options(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """The options of a group and their files, without the bases that options are made from."""
    found: dict[str, Path] = {}
    for conf in folders:
        for file in sorted((conf / group).glob("*.yaml")):
            if not is_base(file.stem):
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def is_base(name: str) -> bool:
    """Whether a file of a group is what its options are made from, and none itself."""
    return name == "base" or name.startswith("base_")


def with_bases(file: Path) -> Iterator[Path]:
    """The file of an option, and those beside it that it is made from."""
    yield file
    loaded = OmegaConf.load(file)
    for base in loaded.get("defaults", []) if isinstance(loaded, DictConfig) else []:
        beside = file.parent / f"{base}.yaml"
        if isinstance(base, str) and beside != file and beside.is_file():
            yield from with_bases(beside)


def meaning(file: Path) -> str:
    """What a config's first comment says, up to the end of its first sentence."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or not (text := line.lstrip("#").strip()):
            break
        words.append(text)
        if line.startswith("#   "):  # an example
            words.pop()
            break
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(words), maxsplit=1)[0]
