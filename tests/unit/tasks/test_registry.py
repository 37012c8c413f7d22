"""Tasks are found by the names that study files give."""

from __future__ import annotations

import pytest

from automl_ft.config.study import TASKS
from automl_ft.errors import UsageError
from automl_ft.tasks.registry import get_task


@pytest.mark.parametrize("name", TASKS)
def test_every_task_that_a_study_file_may_name_is_there(name: str) -> None:
    assert get_task(name).name == name


def test_an_unknown_task_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        UsageError, match=r"task: `text-clasification` is no task. Did you mean `text-classif"
    ):
        get_task("text-clasification")


def test_a_task_like_no_other_is_refused_with_all_that_are_accepted() -> None:
    with pytest.raises(UsageError, match=r"`vision` is no task. Accepted: text-classification"):
        get_task("vision")
