"""Packed or bucketed: measured in as few runs as will do, and packed in doubt."""

from __future__ import annotations

import pytest

from automl_ft.trial.batching import choose_batching


class Clock:
    """Says what each run takes: the first number once, the second from then on."""

    def __init__(self, packed: tuple[float, float], bucketed: tuple[float, float]) -> None:
        self._seconds = {"packed": list(packed), "bucketed": list(bucketed)}
        self.runs: list[str] = []

    def train(self, batching: str) -> float:
        self.runs.append(batching)
        seconds = self._seconds[batching]
        return seconds.pop(0) if len(seconds) > 1 else seconds[0]


def clock(packed: float, bucketed: float, cold: float = 1.0) -> Clock:
    """Return a clock whose first run of packed batches takes longer by a factor."""
    return Clock((cold * packed, packed), (bucketed, bucketed))


def test_packed_is_taken_at_first_sight_where_it_is_no_slower() -> None:
    watch = clock(0.1, 0.1)
    assert choose_batching(watch) == "packed"
    assert watch.runs == ["packed", "bucketed"]


def test_what_only_the_first_run_pays_does_not_count() -> None:
    watch = clock(0.1, 0.15, cold=4.0)
    assert choose_batching(watch) == "packed"
    assert watch.runs == ["packed", "bucketed", "packed"]


def test_bucketed_is_taken_where_it_stays_clearly_faster() -> None:
    watch = clock(0.2, 0.1)
    assert choose_batching(watch) == "bucketed"
    assert watch.runs.count("packed") == watch.runs.count("bucketed") == 4


def test_packed_is_taken_where_bucketed_is_hardly_faster() -> None:
    assert choose_batching(clock(0.11, 0.1)) == "packed"


def test_packed_is_taken_where_it_hardly_matters() -> None:
    watch = clock(0.002, 0.001)
    assert choose_batching(watch) == "packed"
    assert watch.runs == ["packed"]


@pytest.mark.parametrize(("packed", "bucketed"), [(3.0, 1.0), (2.5, 2.0)])
def test_where_a_run_takes_long_there_are_fewer(packed: float, bucketed: float) -> None:
    watch = clock(packed, bucketed)
    assert choose_batching(watch) == "bucketed"
    assert watch.runs == ["packed", "bucketed"] * 3


def test_one_disturbed_round_does_not_decide() -> None:
    watch = Clock((4.0, 4.0), (1.0, 1.0))
    watch._seconds["packed"] = [4.0, 4.0, 1.0]
    assert choose_batching(watch) == "packed"
