"""A campaign against the programs: killed, out of space, damaged, hostile, two at once, and texts of any characters.

    python benchmarks/reliability/run.py                    20 minutes; a table of trials and of what went wrong
    python benchmarks/reliability/run.py --minutes 60 --seed 1
    python benchmarks/reliability/run.py --only killed hostile

Each trial is drawn anew, from the seed: when a process is killed, which file is damaged and how. A trial holds where
the command, started again, ends as an undisturbed one does, bit for bit, or where what is wrong is told in a line.
Everything else is a fault, and is written down with what it takes to do it again. Exits with 1 if there was one.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]
from reliability import trials  # noqa: E402
from reliability.programs import prepare, programs  # noqa: E402
from reliability.trials import FAULTS, Known, Trial, undisturbed  # noqa: E402
from speed.run import processor  # noqa: E402

from l2v.process import set_up_process  # noqa: E402
from l2v.progress import say  # noqa: E402
from l2v.runs.files import write_json, write_text  # noqa: E402

PARTS = ("killed", "full_disk", "damaged", "hostile", "two_at_once", "fuzzed")


def campaign(work: Path, parts: list[str], seconds: float, seed: int, texts: int) -> Iterator[Trial]:
    """Trials of all parts in turn, until the time is over."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    if "fuzzed" in parts:
        yield from trials.fuzzed(work, draw, texts)
    known = [undisturbed(program, work) for program in programs(work)]
    kinds: list[tuple[Callable[[Known, Path, random.Random], Trial], Known]] = []
    for one in known:
        kinds += [(getattr(trials, part), one) for part in ("killed", "full_disk", "damaged") if part in parts]
    kinds += [(getattr(trials, part), known[0]) for part in ("hostile", "two_at_once") if part in parts]
    while kinds:
        for make, one in draw.sample(kinds, len(kinds)):
            if time.monotonic() > end:
                return
            yield make(one, work, draw)


def markdown(found: list[Trial]) -> str:
    """A row for each part: trials, and how many ended in each fault."""
    counts = {part: Counter(one.fault for one in found if one.part == part) for part in sorted({t.part for t in found})}
    lines = [f"| | trials | held | {' | '.join(FAULTS)} |", "|---|--:|--:|" + "--:|" * len(FAULTS)]
    for part, count in counts.items():
        lines.append(
            f"| {part} | {count.total()} | {count[None]} | {' | '.join(str(count[fault] or '') for fault in FAULTS)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    set_up_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=4000, help="of the part fuzzed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    found: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="l2v-reliability-") as folder:
        work = Path(folder)
        prepare(work)
        for trial in campaign(work, arguments.only, 60 * arguments.minutes, arguments.seed, arguments.texts):
            found.append(trial)
            if trial.fault:
                say(f"{trial.part}: {trial.fault}: {trial.what}\n  {trial.detail}")
            elif len(found) % 20 == 0 and trial.part != "texts of any characters":
                say(f"{len(found)} trials")
            if len(found) % 10 == 0 or trial.fault:
                write_json(arguments.output, _results(found, arguments.seed))
    write_json(arguments.output, _results(found, arguments.seed))
    table = markdown(found)
    write_text(arguments.output.with_suffix(".md"), f"{processor()}; seed {arguments.seed}.\n\n{table}")
    print(table)
    sys.exit(any(trial.fault for trial in found))


def _results(found: list[Trial], seed: int) -> dict[str, object]:
    held = Counter(one.part for one in found if one.fault is None)
    return {"seed": seed, "held": held, "faults": [asdict(one) for one in found if one.fault]}


if __name__ == "__main__":
    main()
