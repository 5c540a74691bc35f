"""From the ``tasks`` of a suite's config to checked tasks."""

import dataclasses
from typing import TYPE_CHECKING, Any

from l2v.config.build import build, check_value
from l2v.config.messages import guess
from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.evaluation import Task


def build_tasks(suite: dict[str, Any]) -> "dict[str, Task]":
    """The tasks of a suite by name; their data are not looked at. Of one with ``languages``, the tasks of that name.

    Raises:
        L2VError: a mistake in a setting, or what is named is no task.
    """
    from l2v.evaluation import Task

    nodes = suite["tasks"]
    if suite.get("languages") is not None:
        chosen = check_value(list[str], suite["languages"], "evaluation.languages")
        for language in chosen:
            if language not in nodes:
                has = f"the suite has {', '.join(nodes)}"
                raise L2VError(f"evaluation.languages: no {language} here{guess(language, list(nodes))}; {has}")
        nodes = {language: nodes[language] for language in chosen}
    tasks = build(nodes, "evaluation.tasks")
    for name, task in tasks.items():
        if not (isinstance(task, Task) and dataclasses.is_dataclass(task)):
            raise L2VError(
                f"evaluation.tasks.{name}._target_: {type(task).__name__} is no task; expected a dataclass that is a "
                "subclass of l2v.evaluation.Task"
            )
    return tasks
