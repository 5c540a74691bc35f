"""Scores of an encoder: suites of tasks, a task of one's own (:class:`Task`), analyses, mteb."""

from typing import Any

from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task

__all__ = ["Entries", "ResultStore", "Task", "entry", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import the suite, and torch with it, when it is first used."""
    if name == "evaluate":
        from l2v.evaluation.suite import evaluate

        return evaluate
    raise AttributeError(f"module 'l2v.evaluation' has no attribute {name!r}")
