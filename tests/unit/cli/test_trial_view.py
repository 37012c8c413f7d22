"""What `show --trial` says of a trial's memory."""

from __future__ import annotations

import json
import math

import pytest

from automl_ft.cli.trial_view import write_trial
from automl_ft.search.ranking import RankedTrial
from automl_ft.specs.trial import TrialMemory

from .conftest import make_record, make_trial


@pytest.fixture
def shown(capsys):
    """Return a function that shows a trial and returns what was printed, its lines joined."""

    def show(format_="table", **changes):
        ranked = RankedTrial(rank=1, trial=make_trial(**changes))
        write_trial(ranked, make_record(), format_)
        return " ".join(capsys.readouterr().out.split())

    return show


def test_the_forecast_stands_beside_the_peak(shown):
    assert "900 MiB at most, 850 MiB forecast" in shown(forecast_mib=850.0)


def test_the_share_of_validation_stands_beside_the_time(shown):
    assert "12s (10 % in validation), " in shown(seconds=12.0, seconds_validating=1.2)
    assert json.loads(shown("json", seconds_validating=1.2))["seconds_validating"] == 1.2


@pytest.mark.parametrize(
    "changes",
    [{"seconds": 0.0, "seconds_validating": 0.0}, {}, {"seconds_validating": math.nan}],
)
def test_a_trial_whose_share_is_unknown_shows_none(shown, changes):
    assert "in validation)" not in shown(**changes)


def test_a_trial_without_a_forecast_shows_its_peak_only(shown):
    text = shown()
    assert "900 MiB at most" in text
    assert "forecast" not in text
    assert "rows at once" not in text


def test_a_trial_that_fitted_says_how_many_rows_at_once(shown):
    text = shown(memory=TrialMemory(micro_batch_size=16, eval_batch_size=64))
    assert "16 rows at once, 64 in validation" in text
    assert "running out" not in text


def test_a_trial_that_ran_out_of_memory_says_so(shown):
    memory = TrialMemory(
        micro_batch_size=1,
        eval_batch_size=8,
        is_checkpointing=True,
        num_out_of_memory=5,
        correction=1.5,
    )
    assert (
        "1 row at once, 8 in validation; with gradient checkpointing; after running out of"
        " memory 5 times; forecasts corrected by 1.5"
    ) in shown(memory=memory)


def test_json_holds_the_numbers(shown):
    memory = TrialMemory(micro_batch_size=4, eval_batch_size=64, num_out_of_memory=1)
    found = json.loads(shown("json", forecast_mib=850.0, memory=memory))
    assert found["forecast_mib"] == 850.0
    assert found["memory"]["micro_batch_size"] == 4
    assert found["memory"]["num_out_of_memory"] == 1
