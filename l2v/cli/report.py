"""Runs side by side in one HTML page: ``l2v report runs/demo/* --output report.html``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from l2v.errors import L2VError
from l2v.progress import say
from l2v.report.page import write_report
from l2v.report.runs import runs_in


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="l2v report", description="Runs side by side in one HTML page.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders; files among them are passed over")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page; runs.json is put beside it")
    parser.add_argument("--title", default="l2v report")
    parser.add_argument("--reference", help="label of the run to compare with (bidirectional, else the first)")
    given = parser.parse_args(arguments)
    named = {folder: runs_in(folder) for folder in given.folders if not folder.is_file()}
    folders = [run for inside in named.values() for run in inside]
    without = [folder for folder, inside in named.items() if not inside]
    try:
        if missing := [folder for folder in without if not folder.exists()] or (without if not folders else []):
            raise L2VError(f"{missing[0]} is not a run folder: no run.json and no evaluation/, and no run in it")
        if without:
            say(f"no runs, and left out: {', '.join(map(str, without))}", style="yellow")
        output = write_report(folders, given.output, title=given.title, reference=given.reference)
    except L2VError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{output}: {len(folders)} run{'s' if len(folders) != 1 else ''}")
    return 0


def start() -> None:
    """The program, with the arguments of this process."""
    sys.exit(main())


if __name__ == "__main__":
    start()
