"""Runs that differ in one or two settings, or in their seeds only: each score against the setting, seeds folded."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2v.report.runs import Record, finite, read_config, read_lineage
from l2v.report.tables import flattened, shown
from l2v.runs.lineage import Lineage

_BOOKKEEPING = {
    *("name", "runs_dir", "run_dir", "resume", "reuse", "debug", "logger", "init_from", "objective", "hydra"),
    *("evaluate_every", "evaluation", "export", "keep_checkpoints"),
}
"""Settings that decide nothing of what is trained."""
_FIRST = ("stage", "adapter", "model", "data")
"""Where a setting lies that stands for others which change with it."""
_MOST = 2
_ABSENT = "–"
"""The value of a setting that a run has not."""


@dataclass(frozen=True)
class Point:
    """Runs with the same settings but for their seeds."""

    values: tuple[Any, ...]
    """Of the settings that are varied."""
    labels: list[str]


@dataclass(frozen=True)
class Ablation:
    """Runs of a stage, by what differs between them."""

    stage: str
    settings: list[str]
    """Two at most; that of an earlier stage is named with it: ``mntp: stage.masking_probability``."""
    points: list[Point]


def find_ablations(runs: Sequence[Record]) -> list[Ablation]:
    """The stages whose scored runs differ in two settings at most, and in seeds.

    Settings that always change together count as one. What a run was started from (``init_from``) counts with it.
    """
    stages: dict[str, list[Record]] = {}
    for run in runs:
        stage = run.record.get("stage")
        if stage and run.config and any(suite["scores"] for suite in run.suites.values()):
            stages.setdefault(str(stage), []).append(run)
    found = [_ablation(stage, trained, runs) for stage, trained in stages.items() if len(trained) > 1]
    return [one for one in found if one is not None]


def seeds_of(runs: Sequence[Record]) -> list[list[str]]:
    """Labels of runs that differ in nothing but their seeds, together; in the order of the runs."""
    groups: dict[Any, list[str]] = {}
    for run in runs:
        told = {key: shown(value) for key, value in _settings(run, runs).items()} if run.config else run.label
        groups.setdefault(repr((run.record.get("stage"), told)), []).append(run.label)
    return list(groups.values())


def folded_as(group: Sequence[str], runs: Sequence[Record]) -> str:
    """What runs with the same settings are: ``seeds``, or ``runs`` where some have the same seed."""
    seeds = [repr((run.config or {}).get("seed")) for run in runs if run.label in group]
    return "seeds" if len(set(seeds)) == len(seeds) else "runs"


def _ablation(stage: str, trained: list[Record], runs: Sequence[Record]) -> Ablation | None:
    settings = [_settings(run, runs) for run in trained]
    chosen: dict[tuple[int, ...], str] = {}

    def rank(key: str) -> tuple[Any, ...]:
        """Settings that all runs have stand for those that some have not."""
        return not all(key in one for one in settings), *_rank(key)

    for key in sorted(dict.fromkeys(key for one in settings for key in one), key=rank):
        texts = [shown(one.get(key, _ABSENT)) for one in settings]
        pattern = tuple(texts.index(text) for text in texts)
        if len(set(pattern)) > 1:
            chosen.setdefault(pattern, key)
    keys = list(chosen.values())
    groups: dict[tuple[str, ...], Point] = {}
    for run, one in zip(trained, settings, strict=True):
        values = tuple(one.get(key, _ABSENT) for key in keys)
        groups.setdefault(tuple(map(shown, values)), Point(values, [])).labels.append(run.label)
    if len(keys) > _MOST:
        return None
    return Ablation(stage, keys, sorted(groups.values(), key=lambda point: [order(value) for value in point.values]))


def _rank(key: str) -> tuple[int, int, int]:
    """Own settings before those of an earlier stage, and short names before long ones."""
    own = key.rpartition(": ")[2]
    group = own.partition(".")[0]
    return ": " in key, _FIRST.index(group) if group in _FIRST else len(_FIRST), len(own)


def order(value: Any) -> tuple[bool, float, str]:
    """To sort values of a setting by: numbers first."""
    number = None if isinstance(value, bool) else finite(value)
    return number is None, number or 0.0, shown(value)


def _settings(run: Record, runs: Sequence[Record]) -> dict[str, Any]:
    """What a run was trained with, and what those before it were: dotted key -> value, without seeds.

    Of a start that is no run, or is gone, there is its name.
    """
    settings, seen, before = _own(run.config), {run.folder.resolve()}, run.config.get("init_from")
    folder, lineage, place, stages = run.folder, run.lineage, "", Counter[str]()
    while isinstance(before, str) and (found := _parent(folder, lineage, before, runs)):
        folder, config, lineage = found
        if folder.resolve() in seen:
            break
        seen.add(folder.resolve())
        stage = str((config.get("stage") or {}).get("name", folder.name))
        stages[stage] += 1
        place = f"{stage}: " if stages[stage] == 1 else f"{stage} ({stages[stage]}): "  # 2: the one further back
        settings |= {f"{place}{key}": value for key, value in _own(config).items()}
        before = config.get("init_from")
    return settings | ({f"{place}init_from": before} if before else {})


def _own(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value  # 0 and 0.0 are the same
        for key, value in flattened(config).items()
        if key.partition(".")[0] not in _BOOKKEEPING and key.rpartition(".")[2] not in ("_target_", "seed")
    }


_Parent = tuple[Path, dict[str, Any], Lineage | None]


def _parent(folder: Path, lineage: Lineage | None, before: str, runs: Sequence[Record]) -> _Parent | None:
    """The run that ``init_from`` names, where it was or beside this one, with its config and lineage.

    Another run that has come into that place is none: what it trained is not in this one's lineage.
    """
    for place in (Path(before).expanduser(), folder.parent / Path(before).name):
        known = (run for run in runs if run.config and run.folder.resolve() == place.resolve())
        if run := next(known, None):
            found = run.folder, run.config, run.lineage
        else:
            found = place, read_config(place / "config.yaml")[0], read_lineage(place / "lineage.json")
        if found[1] and _began(lineage, found[2]):
            return found
    return None


def _began(lineage: Lineage | None, before: Lineage | None) -> bool:
    """Whether a run can have begun from another, by its lineage; where that tells nothing, it can."""
    if lineage is None or before is None or before.adapter is None:
        return True
    parts = [*lineage.merged, *([lineage.initial] if lineage.initial else [])]
    return before.adapter.hash in {part.hash for part in parts}


def folded(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and deviation of some values; that of a sample (n - 1), None of a single value."""
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def ablation_rows(found: Ablation, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with their scores: ``{"settings", "runs", "scores": {task: {"mean", "deviation", "values"}}}``.

    Args:
        found: an ablation.
        rows: of ``runs.json``, by label.
    """
    scores_of = {row["label"]: row["scores"] for row in rows}
    made = []
    for point in found.points:
        scores: dict[str, Any] = {}
        for task in dict.fromkeys(task for label in point.labels for task in scores_of[label]):
            known = [scores_of[label].get(task, {}).get("value") for label in point.labels]
            if values := [value for value in known if value is not None]:
                scores[task] = {**folded(values), "values": values}
        settings = dict(zip(found.settings, point.values, strict=True))
        made.append({"settings": settings, "runs": point.labels, "scores": scores})
    return made
