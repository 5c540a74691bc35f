"""A recipe at several points: its command line as Hydra sweeps it, the stages that points share, a report over all."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from l2v.config.typed import as_typed, parsed, quoted
from l2v.errors import L2VError
from l2v.progress import say
from l2v.runs.files import read_json, write_json
from l2v.runs.hashes import distinct_name, settings_hash
from l2v.runs.run import Run

OWN = (
    *("recipe", "name", "runs_dir", "seed", "evaluation", "baselines", "stages", "overrides", "debug", "hydra"),
    *("allow_modules", "texts", "vectors", "triplets"),
)
"""Settings of a recipe, the last three where its stages read such data; any other override is one of train.py and goes
to its stages."""
_POINTS = "L2V_SWEEP_POINTS"
"""Environment variable: the file in which points that are finished say their folders, from whichever process."""
_RECORD = "recipe.json"
_LONGEST = 150
"""Letters of a point's name; a file system takes 255 bytes."""
_NOT_SHARED = ("name", "runs_dir", "run_dir", "resume", "reuse", "debug", "logger", "objective")
"""Settings of a stage that decide nothing of what it trains."""


# the command line


def wrapped(arguments: Sequence[str]) -> list[str]:
    """A recipe's command line with what is train.py's under ``given``, where Hydra sweeps over it too.

    ``stage.masking_probability=0.2,0.4`` becomes ``+given.o0='stage.masking_probability=0.2','...=0.4'``, and what is
    swept over is named by ``swept``.
    """
    made, swept = [], []
    for argument in as_typed(arguments, "recipe"):
        if "=" not in argument or argument.startswith("-"):
            made.append(argument)
            continue
        override = parsed(argument)
        key = argument.partition("=")[0].lstrip("+~")
        values = [argument]
        if override is not None and override.is_discrete_sweep():
            swept.append(key)
            prefix = argument.partition("=")[0]
            values = [f"{prefix}={value}" for value in override.sweep_string_iterator()]
        if re.split(r"[.=@/]", key)[0] in OWN:
            made.append(argument)
        else:
            made.append(f"+given.o{len(made)}={','.join(map(quoted, values))}")
    return [*made, f"swept=[{','.join(map(quoted, swept))}]"] if swept else made


def label_of(swept: Sequence[str], overrides: Sequence[str]) -> str:
    """The name of a point: the settings that differ between points, as ``masking_probability-0.2_seed-1``.

    With a hash at its end where it is too long, or has what no name of a folder should have: no two points share one.
    """
    values = {override.partition("=")[0].lstrip("+~"): override.partition("=")[2] for override in overrides}
    parts = [f"{key.removeprefix('stage.')}-{values.get(key, '')}" for key in swept]
    return distinct_name("_".join(parts), _LONGEST)


# stages that points share


def key_of(config: dict[str, Any], read: Sequence[str], previous: str | None) -> str:
    """What two stages share that train the same thing from the same beginning.

    Args:
        config: of the stage, resolved.
        read: fingerprints of the data, and of the weights that the first stage begins with.
        previous: the key of the stage before it.
    """
    kept = {name: value for name, value in config.items() if name not in _NOT_SHARED}
    return settings_hash([kept, read, previous])


def shared_run(folder: Path, stage: str, key: str, exports: str) -> Path | None:
    """A finished run of another point of the sweep that trained the same stage; None where there is none.

    Args:
        folder: of this point.
        stage: its name in the recipe.
        key: of :func:`key_of`.
        exports: what it has to have at its end, see :meth:`~l2v.runs.run.Run.lacks`.
    """
    for record in sorted(folder.parent.glob(f"*/{_RECORD}")):
        run = Run(record.parent / stage)
        known = None if record.parent == folder else read_json(record).get(stage)
        if known and run.is_finished and known == _stands_for(run, key) and not run.lacks(exports):
            return run.folder
    return None


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Keep other points of a sweep, in whichever process, out of what they share; they wait.

    Args:
        folder: of the whole sweep.
        what: they share: the key of a stage, or the name of a folder.
    """
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / what)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another point of the sweep makes what this one needs too; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def record_stage(folder: Path, stage: str, key: str) -> None:
    """Note what a stage of a point stands for, for other points to find."""
    known = read_json(folder / _RECORD) if (folder / _RECORD).exists() else {}
    write_json(folder / _RECORD, {**known, stage: _stands_for(Run(folder / stage), key)})


def _stands_for(run: Run, key: str) -> list[Any]:
    """The key of a stage, and what it was trained with: one that was resumed with other settings is another."""
    return [key, run.record()["config_hash"]]


# points


class Points:
    """The points of a sweep, as they finish: (label, runs) each."""

    def __init__(self) -> None:
        handle, self._file = tempfile.mkstemp(prefix="l2v-sweep-")
        os.close(handle)
        os.environ[_POINTS] = self._file

    def finished(self) -> Iterator[dict[str, Any]]:
        with open(self._file, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def close(self) -> None:
        os.environ.pop(_POINTS, None)
        os.unlink(self._file)


def note_point(label: str, folder: Path, columns: Sequence[Path]) -> None:
    """Say that a point is finished, where a sweep waits for it."""
    if file := os.environ.get(_POINTS):
        with open(file, "a", encoding="utf-8") as points:
            points.write(json.dumps({"label": label, "folder": str(folder), "runs": list(map(str, columns))}) + "\n")


def apply_to(stages: dict[str, dict[str, Any]], given: Sequence[str]) -> dict[str, list[str]]:
    """Which of the overrides that were given go to which stage: one of ``stage.`` to the stages that have the setting.

    Args:
        stages: name -> its composed config without them.
        given: overrides of train.py.

    Raises:
        L2VError: no stage has it.
    """
    chosen: dict[str, list[str]] = {stage: [] for stage in stages}
    for override in given:
        key = override.partition("=")[0]
        own = [name for name, config in stages.items() if not key.startswith("stage.") or _has(config, key)]
        if not own:
            raise L2VError(f"{override}: none of the stages {', '.join(stages)} has this setting")
        for name in own:
            chosen[name].append(override)
    return chosen


def _has(config: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True
