"""Durations are read as people write them, and written as they read them."""

from __future__ import annotations

import math

import pytest

from automl_ft.config.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90), (1.5, 1.5), ("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400),
        ("1h 30m", 5400), (" 2 D ", 172_800), ("1.5h", 5400), ("0.5d12h", 86_400), ("1d1s", 86_401),
        ("1e3", 1000), ("0", 0), ("-5", -5),
    ],
)  # fmt: skip
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "soon", "30x", "m30", "30m1h", "1h-5m", "1,5h", "--1"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_is_no_duration(flag: bool) -> None:
    with pytest.raises(ValueError, match=f"`{flag}` is no duration"):
        parse_duration(flag)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (41.4, "41s"), (59.6, "1m 00s"),
        (60, "1m 00s"), (185, "3m 05s"), (3599.7, "1h 00m"), (7800, "2h 10m"), (86_399, "23h 59m"),
        (100_800, "1d 4h"), (864_000, "10d 0h"),
    ],
)  # fmt: skip
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("exponent", range(-1, 7))
def test_what_is_written_can_be_read(exponent: int) -> None:
    for factor in (1.0, 2.7, 6.4, 9.9):
        seconds = factor * 10**exponent
        shown = parse_duration(format_duration(seconds))
        # Two units are shown: what is lost is less than one of the smaller.
        unit = (
            0.05 if seconds < 9.95 else 0.5 if seconds < 3600 else 60 if seconds < 86_400 else 3600
        )
        assert math.isclose(shown, seconds, abs_tol=unit)
