"""Trial records without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from optuna.trial import TrialState

from automl_ft.storage.records import TrialRecord

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


def make_trial(number: int, state: str = "COMPLETE", value: float | None = None, **changes: Any):
    """A trial; finished ones end in the order of their numbers."""
    is_finished = TrialState[state].is_finished()
    is_new = state == "WAITING" and not changes.get("intermediate_values")
    values: dict[str, Any] = {
        "number": number,
        "state": TrialState[state],
        "params": {"learning_rate": 1e-3},
        "distributions": {},
        "hyperparameters": {"learning_rate": 1e-3, "epochs": 2},
        "value": value,
        "intermediate_values": {},
        "metrics": {},
        "seconds": None,
        "examples": None,
        "peak_memory_mib": None,
        "failure": None,
        "seed": 1,
        "origin": "sampler",
        "rerun_of": None,
        "best_step": None,
        "started": None if is_new else MOMENT,
        "ended": MOMENT + timedelta(seconds=number) if is_finished else None,
        "user_attrs": {},
        "system_attrs": {},
    }
    return TrialRecord(**{**values, **changes})
