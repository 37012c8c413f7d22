import pytest

from automl_ft.space.bounds import BoundError, check_bound, evaluate_bound


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("num_layers", 12),
        ("num_layers - 1", 11),
        ("num_layers//2", 6),
        (" 2 * num_layers + 1 ", 25),
        ("(num_layers + 2) // 3", 4),
        ("7", 7),
    ],
)
def test_expression_over_facts_is_evaluated(text, value):
    assert evaluate_bound(text, {"num_layers": 12}) == value


def test_unknown_fact_gets_a_suggestion():
    with pytest.raises(BoundError, match=r"`num_layer` is no fact .* Did you mean `num_layers`"):
        check_bound("num_layer - 1")


@pytest.mark.parametrize(
    "text",
    ["num_layers / 2", "-num_layers", "__import__('os')", "num_layers ** 9", "1.5", "True", "x.y"],
)
def test_anything_but_whole_number_arithmetic_is_refused(text):
    with pytest.raises(BoundError, match="uses more than"):
        check_bound(text)


@pytest.mark.parametrize("text", ["num_layers -", "", "two layers"])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(BoundError, match="no whole number and no expression"):
        check_bound(text)


def test_division_by_zero_is_refused():
    with pytest.raises(BoundError, match="divides by zero"):
        evaluate_bound("3 // (num_layers - 12)", {"num_layers": 12})


def test_very_long_expression_is_refused():
    with pytest.raises(BoundError, match="longer than 60 characters"):
        check_bound("(" * 61)
