"""Which task does a name stand for?"""

from __future__ import annotations

from automl_ft.errors import UsageError, did_you_mean
from automl_ft.tasks.base import Task
from automl_ft.tasks.text_classification import TextClassification

__all__ = ["get_task"]

_TASKS: dict[str, Task] = {TextClassification.name: TextClassification()}


def get_task(name: str) -> Task:
    """Return the task of a name.

    Args:
        name: Such as `text-classification`.

    Returns:
        The task.

    Raises:
        UsageError: There is no such task.
    """
    if name not in _TASKS:
        raise UsageError(f"task: `{name}` is no task. {did_you_mean(name, _TASKS)}")
    return _TASKS[name]
