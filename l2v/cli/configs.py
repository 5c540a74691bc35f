"""What can be chosen: ``l2v configs`` lists groups and options with their meaning, ``l2v configs model`` one group."""

import argparse
import sys

from l2v.config.messages import guess
from l2v.config.search import groups, meaning, options, search_path
from l2v.progress import say


def start() -> None:
    """The program, with the arguments of this process."""
    parser = argparse.ArgumentParser(prog="l2v configs", description="Groups and their options, with their meaning.")
    parser.add_argument("group", nargs="?", help="e.g. model; without it, every group")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="your own configs, beside those of l2v")
    given = parser.parse_args()
    folders = search_path(["--config-dir", given.config_dir] if given.config_dir else [])
    known = groups(folders)
    if given.group and given.group not in known:
        say(
            f"error: {given.group}: no such group{guess(given.group, known)}; there are {', '.join(known)}", style="red"
        )
        sys.exit(1)
    for group in [given.group] if given.group else known:
        found = options(group, folders)
        width = max(map(len, found))
        print(f"{group}=")
        for option, file in found.items():
            print(f"  {option:<{width}}  {meaning(file)}")


if __name__ == "__main__":
    start()
