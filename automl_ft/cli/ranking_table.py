"""How does a ranking become a table? Shared by `search` and `show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from automl_ft.cli.render import Column, Table
from automl_ft.cli.values import duration, memory, number, score, state_word

if TYPE_CHECKING:
    from automl_ft.search.ranking import RankedTrial
    from automl_ft.storage.records import TrialRecord

__all__ = ["ranking_table", "trial_row"]


def ranking_table(ranking: Sequence[RankedTrial], objective: str) -> Table:
    """Lay out a ranking.

    Args:
        ranking: Trials, the best first.
        objective: The metric that they are ranked by; heads the column of values.

    Returns:
        The table: rank, trial, value, state, cost, parameters.
    """
    columns = (
        Column(key="rank", title="#", align="right"),
        Column(key="trial", title="trial", align="right"),
        Column(key="value", title=objective, align="right", show=score, style="bold"),
        Column(key="state", title="state"),
        Column(key="seconds", title="time", align="right", show=duration),
        Column(key="examples", title="examples", align="right", show=number, is_wide_only=True),
        Column(
            key="peak_memory_mib", title="memory", align="right", show=memory, is_wide_only=True
        ),
        Column(key="origin", title="from"),
        Column(key="params", title="parameters", is_params=True),
    )
    return Table(columns=columns, rows=[_row(ranked) for ranked in ranking])


def _row(ranked: RankedTrial) -> dict[str, Any]:
    return {"rank": ranked.rank, **trial_row(ranked.trial)}


def trial_row(trial: TrialRecord) -> dict[str, Any]:
    """Return what is told of a trial in a ranking.

    Args:
        trial: The trial.

    Returns:
        Raw values by column; further keys for scripts.
    """
    from automl_ft.search.ranking import furthest_value

    return {
        "trial": trial.number,
        "value": furthest_value(trial),
        "state": state_word(trial),
        "seconds": trial.seconds,
        "examples": trial.examples,
        "peak_memory_mib": trial.peak_memory_mib,
        "origin": trial.origin,
        "params": dict(trial.params),
        "failure": None if trial.failure is None else trial.failure.kind.value,
    }
