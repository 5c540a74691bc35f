"""From the ``tasks`` of a suite's config to checked tasks."""

import dataclasses
from typing import TYPE_CHECKING, Any

from l2v.config.build import build
from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.evaluation import Task


def build_tasks(nodes: dict[str, Any]) -> "dict[str, Task]":
    """The tasks of a suite by name; their data are not looked at.

    Raises:
        L2VError: a mistake in a setting, or what is named is no task.
    """
    from l2v.evaluation import Task

    tasks = build(nodes, "evaluation.tasks")
    for name, task in tasks.items():
        if not (isinstance(task, Task) and dataclasses.is_dataclass(task)):
            raise L2VError(
                f"evaluation.tasks.{name}._target_: {type(task).__name__} is no task; expected a dataclass that is a "
                "subclass of l2v.evaluation.Task"
            )
    return tasks
