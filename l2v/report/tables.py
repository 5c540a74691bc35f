"""What the tables hold: scores and their comparison, settings that differ, versions."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2v.errors import L2VError
from l2v.report.paper import number_for
from l2v.report.runs import Record, finite, read_runs


def summary_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Scores of runs, a row per run: ``{"label", "scores": {task: ...}, "seconds"}``.

    A score is ``{"label", "metric", "value", "higher_is_better", "paper"}``; its value is None where it is not a finite
    number. ``paper`` is None, or the paper's number for it: ``{"value", "row", "source"}``.
    A task that occurs in several suites is named ``suite/task``, and one whose label or metric is not the same in all
    runs (another sample of it) has them in its name: scores of one name compare. ``seconds`` is the training's wall
    time, or None.

    Raises:
        L2VError: a folder is no run, or a file is broken.
    """
    return summary(read_runs(folders))


def summary(runs: list[Record]) -> list[dict[str, Any]]:
    """The same of runs that were read."""
    suites_of: dict[str, set[str]] = {}
    kinds_of: dict[tuple[str, str], set[Any]] = {}
    for run in runs:
        for suite, content in run.suites.items():
            for task, score in content["scores"].items():
                suites_of.setdefault(task, set()).add(suite)
                kinds_of.setdefault((suite, task), set()).add(_kind(score))
    rows = []
    for run in runs:
        scores = {}
        for suite, content in run.suites.items():
            for task, score in content["scores"].items():
                shared = len(suites_of[task]) > 1
                paper = number_for(run, content, suite, score)
                label = str(score.get("label", task))
                name = f"{suite}/{task}" if shared else task
                if len(kinds_of[suite, task]) > 1:  # of another sample, or by another metric
                    name += f" ({', '.join(filter(None, map(str, _kind(score))))})"
                scores[name] = {
                    "label": f"{label} ({suite})" if shared else label,
                    "metric": str(score.get("metric", "")),
                    "value": finite(score.get("value")),
                    "higher_is_better": bool(score.get("higher_is_better", True)),
                    "paper": asdict(paper) if paper else None,
                }
        rows.append({"label": run.label, "scores": scores, "seconds": finite(run.record.get("seconds"))})
    return rows


def _kind(score: dict[str, Any]) -> tuple[Any, Any]:
    return score.get("label"), score.get("metric")


def choose_reference(runs: list[Record], wanted: str | None) -> str:
    """Label of the run to compare with: the one asked for, else ``bidirectional``, else the first."""
    labels = [run.label for run in runs]
    if wanted is not None and wanted not in labels:
        raise L2VError(f"reference={wanted}: no run has this label; expected one of {', '.join(labels)}")
    return wanted or ("bidirectional" if "bidirectional" in labels else labels[0])


def make_document(runs: list[Record], title: str, reference: str) -> dict[str, Any]:
    """Everything in the tables, as JSON values: the content of ``runs.json``."""
    compared = _compared(summary(runs), reference)
    facts = ("name", "stage", "status", "seed", "config_hash", "created", "finished", "choices", "versions")
    rows = [
        {
            **row,
            "folder": str(run.folder),
            **{fact: _plain(run.record.get(fact)) for fact in facts},
            "steps": run.steps,
            "tokens_per_second": run.tokens_per_second,
            "evaluation_seconds": run.evaluation_seconds,
            "evaluations": {
                suite: _plain({key: value for key, value in content.items() if key != "scores"})
                for suite, content in run.suites.items()
            },
            "contamination": _plain(run.contamination),
            "lineage": asdict(run.lineage) if run.lineage else None,
        }
        for run, row in zip(runs, compared, strict=True)
    ]
    return {
        "title": title,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(runs),
        "reference": reference,
        "runs": rows,
        "settings": _differing_settings(runs),
    }


def _compared(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Add to every score its ``difference`` to the reference's (None without one) and whether it is the ``best``.

    To the paper's number, where there is one, its ``difference`` is added too: score minus paper.
    There is a best only among two values or more; equal values share it.
    """
    base = next(row["scores"] for row in rows if row["label"] == reference)
    values = known_values(rows)

    def compared(task: str, score: dict[str, Any], label: str) -> dict[str, Any]:
        value, other = score["value"], base.get(task, {}).get("value")
        best = best_of(values[task], score["higher_is_better"])
        known = value is not None and other is not None and label != reference
        paper = score["paper"]
        if paper is not None:
            paper = {**paper, "difference": value - paper["value"] if value is not None else None}
        return {
            **score,
            "paper": paper,
            "difference": value - other if known else None,
            "best": value is not None and value == best and len(values[task]) > 1,
        }

    return [
        {**row, "scores": {task: compared(task, score, row["label"]) for task, score in row["scores"].items()}}
        for row in rows
    ]


def known_values(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The finite values of each task in summary rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for task, score in row["scores"].items():
            values.setdefault(task, []).extend([score["value"]] if score["value"] is not None else [])
    return values


def best_of(values: list[float], higher_is_better: bool) -> float | None:
    """The best value; None without any."""
    return (max if higher_is_better else min)(values, default=None)


def _versions(runs: list[Record]) -> dict[str, list[str]]:
    """Versions that the runs recorded, else those installed here, by package."""
    versions: dict[str, list[str]] = {}
    for package in ("l2v", "torch", "transformers"):
        recorded = [(run.record.get("versions") or {}).get(package) for run in runs]
        found = [str(version) for version in dict.fromkeys(recorded) if version]
        try:
            versions[package] = found or [importlib.metadata.version(package)]
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _differing_settings(runs: list[Record]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all runs that recorded any: dotted key -> label -> value.

    The choices of config groups come first, as ``choices.<group>``. A run without the setting has no entry.
    """
    settings = {
        run.label: {
            **{f"choices.{key}": _plain(value) for key, value in (run.record.get("choices") or {}).items()},
            **flattened(run.config),
        }
        for run in runs
        if run.config or run.record.get("choices")
    }
    keys = dict.fromkeys(key for flat in settings.values() for key in flat)
    rows = {key: {label: flat[key] for label, flat in settings.items() if key in flat} for key in keys}
    return {
        key: row for key, row in rows.items() if len(row) < len(settings) or len({shown(v) for v in row.values()}) > 1
    }


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            flattened(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": _plain(value)}
        )
    return flat


def _plain(value: Any) -> Any:
    """A value that JSON can hold: dates, NaN and infinity become text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int) or finite(value) is not None:
        return value
    return str(value)


def shown(value: Any) -> str:
    """A setting as one writes it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
