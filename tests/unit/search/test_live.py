"""What is known of a running trial."""

import pytest

from automl_ft.search.live import LiveTrial
from automl_ft.specs.decision import Progress


def progress(examples, seconds, total=200):
    return Progress(examples_seen=examples, total_examples=total, train_loss=0.5, seconds=seconds)


@pytest.fixture
def live():
    return LiveTrial(number=3, worker=0, params={"epochs": 2}, curve=[0.1])


def test_before_any_progress_there_is_no_estimate(live):
    view = live.view()
    assert (view.number, view.params, view.curve) == (3, {"epochs": 2}, (0.1,))
    assert (view.fraction, view.train_loss, view.seconds, view.seconds_left) == (0, None, 0, None)


def test_first_progress_gives_no_speed_yet(live):
    live.advance(progress(50, 10.0))
    assert (live.view().fraction, live.view().seconds_left) == (0.25, None)


def test_speed_is_that_of_this_run(live):
    """A trial that was resumed has seconds of a slower machine behind it."""
    live.advance(progress(100, 1000.0))
    live.advance(progress(150, 1005.0))
    assert live.view().seconds_left == 5.0
    assert live.view().seconds == 1005.0


def test_fraction_never_exceeds_one(live):
    live.advance(progress(300, 1.0))
    assert live.view().fraction == 1.0
    live.advance(progress(1, 1.0, total=0))
    assert live.view().fraction == 1.0


def test_view_is_a_copy(live):
    view = live.view()
    live.curve.append(0.2)
    assert view.curve == (0.1,)
