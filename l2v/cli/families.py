"""Which decoders can be turned: ``l2v families [model_type ...]`` proves it on tiny random models."""

import argparse
import sys
from pathlib import Path

from l2v.errors import L2VError, first_line
from l2v.models.examination import examine_all, table, update
from l2v.process import set_up_process
from l2v.progress import say


def start() -> None:
    """The program, with the arguments of this process."""
    parser = argparse.ArgumentParser(prog="l2v families", description=__doc__.partition("\n")[0])
    parser.add_argument("model_type", nargs="*", help="of transformers, e.g. qwen3; without any, all that are listed")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this page, e.g. docs/models.md")
    arguments = parser.parse_args()
    set_up_process(models=False)
    try:
        rows = examine_all(arguments.model_type)
        if arguments.write:
            arguments.write.write_text(update(arguments.write.read_text("utf-8"), rows), "utf-8")
            say(f"wrote {arguments.write}")
        else:
            print(table(rows))
    except (L2VError, OSError) as error:
        say(f"error: {first_line(error)}")
        sys.exit(1)


if __name__ == "__main__":
    start()
