"""How large a group of trials may grow by proposals."""

import pytest

from automl_ft.search.line import group_room


@pytest.mark.parametrize(
    ("num_known", "room"), [(0, 8), (2, 8), (5, 5), (8, 2), (12, 3), (32, 8), (400, 8)]
)
def test_group_is_a_part_of_what_the_sampler_knows(make_shadow, num_known, room):
    assert group_room(make_shadow(n_startup_trials=10), num_known) == room


@pytest.mark.parametrize("sampler", ["random", "qmc", "grid"])
def test_sampler_that_learns_nothing_loses_nothing(make_shadow, sampler):
    assert group_room(make_shadow(sampler), 5) == 8


def test_sampler_that_learns_from_the_first_trial_has_no_start_up(make_shadow):
    assert group_room(make_shadow("cmaes", n_startup_trials=10), 0) == 2
