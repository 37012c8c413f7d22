import pytest
from optuna.trial import TrialState

from automl_ft.cli import values


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (values.score, 0.85123, "0.8512"),
        (values.score, None, "-"),
        (values.score, float("nan"), "-"),
        (values.difference, 0.01, "+0.0100"),
        (values.difference, -0.01, "-0.0100"),
        (values.duration, 65, "1m 05s"),
        (values.duration, None, "-"),
        (values.number, 12000, "12,000"),
        (values.number, None, "-"),
        (values.memory, 900.0, "900 MiB"),
        (values.memory, 1234.0, "1.2 GiB"),
        (values.memory, None, "-"),
        (values.size, 5, "5 B"),
        (values.size, 2048, "2.0 KiB"),
        (values.size, 3 * 2**40, "3.0 TiB"),
        (values.param, 3.123e-5, "3.12e-05"),
        (values.param, None, "-"),
        (values.param, True, "True"),
        (values.param, "none", "none"),
    ],
)
def test_a_value_is_written_for_people(write, value, text):
    assert write(value) == text


def test_params_are_written_as_enqueue_reads_them():
    assert values.params_line({"epochs": 3, "freezing": "none"}) == "epochs=3 freezing=none"


def test_a_count_of_one_is_singular():
    assert (values.plural(1, "trial"), values.plural(1200, "trial")) == ("1 trial", "1,200 trials")


def test_a_waiting_trial_with_a_curve_is_paused(make):
    paused = make.make_trial(1, state=TrialState.WAITING)
    fresh = make.make_trial(1, state=TrialState.WAITING, intermediate_values={}, started=None)
    assert (values.state_word(paused), values.state_word(fresh)) == ("paused", "waiting")


def test_a_curve_goes_from_the_lowest_to_the_highest_bar():
    assert values.curve([0.1, 0.5, 0.9]) == "\u2581\u2585\u2588"


def test_a_flat_curve_is_drawn_half_way_up():
    assert values.curve([0.5, 0.5], is_ascii=True) == "=="


def test_a_curve_in_ascii_has_no_block_characters():
    assert values.curve([0, 1], is_ascii=True) == "_#"


def test_a_long_curve_is_thinned_out_but_keeps_its_last_value():
    drawn = values.curve([0.0] * 99 + [1.0], width=10)
    assert len(drawn) == 10
    assert drawn[-1] == "\u2588"


def test_values_that_are_not_finite_leave_a_gap_in_the_curve():
    assert values.curve([0.0, float("nan"), 1.0]) == "\u2581 \u2588"
    assert values.curve([float("nan")]) == " "


def test_a_curve_without_values_is_empty():
    assert values.curve([]) == ""
