"""A config to change: ``l2v copy model/llama3-8b my/conf/model/mine.yaml`` copies one and says how it is chosen."""

import argparse
import sys
from pathlib import Path

from l2v.config.messages import guess
from l2v.config.search import groups, options, search_path
from l2v.errors import L2VError
from l2v.progress import say

_PROGRAMS = {"recipe": "recipe", "evaluation": "evaluate", "gpu": "plan"}
"""Group -> the program that it is chosen in; train for all others."""


def copy(name: str, file: Path, config_dir: str | None = None) -> str:
    """Copy an option of a group.

    Args:
        name: group/option, e.g. model/llama3-8b.
        file: ``<folder>/<group>/<new option>.yaml``; folders are made.
        config_dir: a folder with the user's own options, from which it may be copied too.

    Returns:
        the command that chooses the copy.

    Raises:
        L2VError: there is no such option, the file exists, or Hydra would not find it there.
    """
    folders = search_path(["--config-dir", config_dir] if config_dir else [])
    group, _, option = name.removesuffix(".yaml").partition("/")
    known = groups(folders)
    if group not in known:
        raise L2VError(f"{name}: no such group{guess(group, known)}; expected <group>/<option> of {', '.join(known)}")
    found = options(group, folders)
    if option not in found:
        raise L2VError(f"{name}: no such option{guess(option, list(found))}; there are {', '.join(found)}")
    if file.suffix != ".yaml" or file.parent.name != group:
        raise L2VError(f"{file}: Hydra would not find it there; expected <folder>/{group}/<new option>.yaml")
    if file.stem in found:
        raise L2VError(f"{file}: {group}={file.stem} is there already; choose another name than {', '.join(found)}")
    text = found[option].read_text(encoding="utf-8")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise L2VError(f"{file}: exists; it is not written over") from None
    except OSError as error:
        raise L2VError(f"{file}: cannot be written ({error.strerror})") from None
    needed = " stage=supervised" if group == "loss" else ""
    return f"l2v {_PROGRAMS.get(group, 'train')} --config-dir {file.parent.parent}{needed} {group}={file.stem}"


def start() -> None:
    """The program, with the arguments of this process."""
    parser = argparse.ArgumentParser(prog="l2v copy", description="Copy a config of l2v's to change it.")
    parser.add_argument("name", help="<group>/<option>, e.g. model/llama3-8b; `l2v configs` lists them")
    parser.add_argument("file", type=Path, help="<your folder>/<group>/<new option>.yaml")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="your own configs, beside those of l2v")
    given = parser.parse_args()
    try:
        command = copy(given.name, given.file, given.config_dir)
    except L2VError as error:
        say(f"error: {error}", style="red")
        sys.exit(1)
    print(f"wrote {given.file}; change it, then\n  {command}")


if __name__ == "__main__":
    start()
