"""Run folders as they are on disk: what is there is read, what is missing is an empty value."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from l2v.errors import L2VError
from l2v.runs.files import read_json, read_json_lines
from l2v.runs.lineage import AdapterRecord, Lineage

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
_FILES = ("run.json", "config.yaml", "lineage.json", "metrics.jsonl", "evaluation", "contamination")


@dataclass(frozen=True)
class Record:
    """What a run folder holds. A file that is missing is an empty value."""

    label: str
    """The folder's name, with as many parents as tell it from the other runs."""
    folder: Path
    record: dict[str, Any]
    """``run.json``"""
    config: dict[str, Any]
    config_text: str
    lineage: Lineage | None
    metrics: list[dict[str, Any]]
    """Rows of ``metrics.jsonl``; their keys differ."""
    suites: dict[str, dict[str, Any]]
    """``evaluation/<suite>.json`` by suite."""
    contamination: dict[str, dict[str, Any]]
    """``contamination/<suite>.json`` by suite."""

    def series(self, key: str) -> Series:
        """Steps and values of a metric, by step. After a resume the last row of a step counts."""
        values = self._columns.get(key, {})
        steps = np.array(sorted(values), dtype=np.int64)
        return steps, np.array([values[step] for step in steps.tolist()], dtype=np.float64)

    @functools.cached_property
    def _columns(self) -> dict[str, dict[int, float]]:
        """Numbers of ``metrics`` by key, then by step."""
        columns: dict[str, dict[int, float]] = {}
        for row in self.metrics:
            step = row.get("step")
            if isinstance(step, int | float):
                for key, value in row.items():
                    if isinstance(value, int | float):
                        columns.setdefault(key, {})[int(step)] = float(value)
        return columns

    @property
    def steps(self) -> int | None:
        """Optimizer steps: as recorded, else the last one that was logged."""
        logged = [row["step"] for row in self.metrics if isinstance(row.get("step"), int | float)]
        steps = finite(self.record.get("step"))
        return int(steps) if steps is not None else int(max(logged)) if logged else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logged training steps."""
        values = self.series("train/tokens_per_second")[1]
        return finite(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else None

    @property
    def evaluation_seconds(self) -> float | None:
        """Wall time of all suites together."""
        seconds = [s for suite in self.suites.values() if (s := finite(suite.get("seconds"))) is not None]
        return sum(seconds) if seconds else None


def read_runs(folders: Sequence[Path]) -> list[Record]:
    """Read run folders, each once, in their order.

    Raises:
        L2VError: no folder is given, a folder is no run, or a file is broken.
    """
    unique: dict[Path, Path] = {}
    for folder in folders:
        unique.setdefault(folder.resolve(), folder)  # a link to a run is that run
    paths = [Path(os.path.abspath(folder)) for folder in unique.values()]
    if not paths:
        raise L2VError("no run folder is given; expected at least one, as in `l2v report runs/demo/*`")
    return [_read_run(folder, label) for folder, label in zip(unique.values(), _labels(paths), strict=True)]


def weights_of(run: Record, suite: dict[str, Any]) -> Lineage | None:
    """What an evaluated encoder is made of: the run's lineage, else that of the run or model that ``suite`` names."""
    if run.lineage is not None:
        return run.lineage
    encoder = suite.get("encoder")
    if not isinstance(encoder, str) or not encoder:
        return None
    known = read_lineage(Path(encoder).expanduser() / "lineage.json") or Lineage(encoder, base_hash="")
    adapters = [AdapterRecord(Path(str(name)).name, str(name), hash="") for name in suite.get("adapters") or ()]
    tops = [record for record in (known.initial, known.adapter) if record] if adapters else []
    return replace(known, merged=[*known.merged, *tops, *adapters], initial=None, adapter=None) if adapters else known


def _labels(paths: list[Path]) -> list[str]:
    """The shortest ends of absolute paths that tell them apart."""
    labels, depth = [path.name for path in paths], 1
    while len(set(labels)) < len(labels):
        depth += 1
        labels = [
            "/".join(path.parts[-depth:]) if labels.count(label) > 1 else label
            for path, label in zip(paths, labels, strict=True)
        ]
    return labels


def _is_run(folder: Path) -> bool:
    return any((folder / file).exists() for file in _FILES)


def runs_in(folder: Path) -> list[Path]:
    """A run; or the runs inside a folder, however deep, in order. What is hidden, or in a run, is passed over."""
    if _is_run(folder):
        return [folder]
    inside = sorted(part for part in folder.glob("*/") if not part.name.startswith("."))
    return [run for part in inside for run in runs_in(part)]


def _read_run(folder: Path, label: str) -> Record:
    if not _is_run(folder):
        raise L2VError(f"{folder} is not a run folder: no run.json and no evaluation/")
    config, config_text = read_config(folder / "config.yaml")
    return Record(
        label=label,
        folder=folder,
        record=_read_record(folder / "run.json"),
        config=config,
        config_text=config_text,
        lineage=read_lineage(folder / "lineage.json"),
        metrics=read_json_lines(metrics) if (metrics := folder / "metrics.jsonl").exists() else [],
        suites=_read_suites(folder / "evaluation"),
        contamination={f.stem: _read_contamination(f) for f in sorted((folder / "contamination").glob("*.json"))},
    )


def _read_record(file: Path) -> dict[str, Any]:
    record = _read_object(file)
    for key in ("choices", "versions"):
        _object(record.get(key) or {}, f"{file}: {key}")
    return record


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return _object(read_json(file), str(file)) if file.exists() else {}


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise L2VError(f"{where}: expected an object, found {type(value).__name__}")
    return value


def _read_suites(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, and analyses, which have plots of their own, after what only scores."""
    suites = {file.stem: _read_suite(file) for file in sorted(folder.glob("*.json"))}
    return dict(sorted(suites.items(), key=lambda one: any("plot" in score for score in one[1]["scores"].values())))


def _read_suite(file: Path) -> dict[str, Any]:
    suite = _read_object(file)
    scores = _object(suite.get("scores", {}), f"{file}: scores")
    return {**suite, "scores": {task: _object(score, f"{file}: scores.{task}") for task, score in scores.items()}}


def _read_contamination(file: Path) -> dict[str, Any]:
    """What ``l2v contamination`` wrote.

    Raises:
        L2VError: it is none, or of another version.
    """
    check = _read_object(file)
    training, tasks = check.get("training"), check.get("tasks")
    whole = isinstance(training, dict) and isinstance(training.get("words"), int) and {"data", "n"} <= check.keys()
    if not (whole and isinstance(tasks, dict) and all(map(_is_share, tasks.values()))):
        raise L2VError(
            f"{file}: not a file of l2v contamination of this version; delete it, or write it anew with that command"
        )
    return check


def _is_share(task: Any) -> bool:
    """Whether it says of a task what the page shows."""
    if not isinstance(task, dict) or not isinstance(task.get("label"), str):
        return False
    shares = [task.get(key, "") for key in ("share", "grams_share")]
    return all(isinstance(task.get(key), int) for key in ("texts", "too_short")) and all(
        share is None or isinstance(share, int | float) for share in shares
    )


def read_config(file: Path) -> tuple[dict[str, Any], str]:
    if not file.exists():
        return {}, ""
    try:
        text = file.read_text(encoding="utf-8")
        return _object(yaml.safe_load(text) or {}, str(file)), text
    except UnicodeDecodeError:
        raise L2VError(f"{file}: not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place, problem = f"{file}:{mark.line + 1}" if mark else file, getattr(error, "problem", None) or "unreadable"
        raise L2VError(f"{place}: not YAML ({problem})") from None


def read_lineage(file: Path) -> Lineage | None:
    return Lineage.read(file) if file.exists() else None


def finite(value: Any) -> float | None:
    """A number as a float; None where it is no number, infinite or NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
