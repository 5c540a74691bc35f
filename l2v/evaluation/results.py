"""Scores as a suite's file has them, and where those of one encoder are kept."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Entries = dict[str, dict[str, Any]]
"""Scores of a suite's file by their keys, each made by :func:`entry`."""


@dataclass(frozen=True)
class ResultStore:
    """Where a task may keep scores one by one, so that an evaluation that was stopped goes on with what is missing."""

    folder: Path
    encoder: str
    """owner/name, for the folder of its scores."""
    fingerprint: str
    """What pins its vectors: scores of another fingerprint are not those of this encoder."""

    def under(self, key: str) -> "ResultStore":
        """A place for scores that the same encoder gets in another way, which are kept apart."""
        return replace(self, fingerprint=f"{self.fingerprint}-{key}")


def entry(
    label: str, metric: str, value: float, details: dict[str, float], *, higher_is_better: bool = True
) -> dict[str, Any]:
    """A score as a suite's file has it. It may get a ``plot`` too: numbers for the report to draw, with their ``kind``
    (``l2v.report.analyses``)."""
    return {
        "label": label,
        "metric": metric,
        "value": value,
        "higher_is_better": higher_is_better,
        "details": details,
    }
