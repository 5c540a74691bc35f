"""The command ``l2v``: ``l2v train stage=mntp`` is ``python train.py stage=mntp``."""

import os
import sys
from importlib.metadata import version

PROGRAMS = {
    "train": "one training stage",
    "plan": "what a training stage will take: memory, time, disk, and whether it fits",
    "depth": "how many layers of a decoder to keep",
    "recipe": "stages in a row, with an evaluation before and after each",
    "evaluate": "score an encoder",
    "encode": "files of texts to Parquet shards of vectors",
    "mine": "hard negatives for pairs",
    "export": "a run's encoder for others",
    "verify": "whether an encoder that is served gives its own vectors",
    "report": "runs side by side in one HTML page",
    "contamination": "evaluation texts in training data",
    "configs": "groups and options that can be chosen, with their meaning",
    "copy": "a config to change, e.g. model/llama3-8b",
    "families": "which decoders can be turned, proven on tiny models",
}
"""Name -> what it does; each is a module of this package."""


def start() -> None:
    """Become the program that the first argument names.

    The process is replaced, so that what starts more of it (Lightning's processes of one machine) finds a module to
    run, as it does for ``python train.py``.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in PROGRAMS:
        os.environ["PYTHONSAFEPATH"] = "1"  # a user's folder is no place to import l2v's needs from
        os.execv(sys.executable, [sys.executable, "-m", f"l2v.cli.{name}", *arguments])
    if name == "--version":
        print(version("l2v"))
        return
    lines = [f"  {program:<14} {what}" for program, what in PROGRAMS.items()]
    told = "\n".join(["usage: l2v <program> [arguments]; l2v <program> --help shows them", "", *lines])
    if name in ("--help", "-h", "help"):
        print(told)
        return
    print(f"l2v {name}: no such program\n{told}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    start()
