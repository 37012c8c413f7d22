"""A cache that is damaged, taken away or refused never fails a trial nor changes its values."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl_ft.files import quota
from automl_ft.specs.decision import Decision, Progress
from automl_ft.trial.prefix_cache import CacheKey, PrefixCache
from automl_ft.trial.prepare import PreparedStudy

RECIPES: dict[str, dict[str, Any]] = {
    "tokens": {"freezing": "bottom_layers", "frozen_layers": 1},
    "pooled": {"freezing": "head_only"},
    "stages": {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0},
}
LOGGER = "automl_ft.trial.prefix_cache"


@pytest.fixture(autouse=True)
def _full_disks_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "activations"


@pytest.fixture
def cached(study: PreparedStudy, folder: Path) -> Callable[..., PreparedStudy]:
    """Return the study as another process opens it."""

    def open_cached(budget: int = 10**8) -> PreparedStudy:
        return dataclasses.replace(study, cache=PrefixCache(folder, budget))

    return open_cached


@pytest.fixture
def losses(run: Any, script: Any, tmp_path: Path) -> Callable[..., list[float]]:
    """Run a trial without dropout; return its losses and its value."""

    def run_losses(study: PreparedStudy, name: str, recipe: str, reporter: Any = None) -> Any:
        told = reporter or script()
        changes = {"dropout": 0.0, **RECIPES[recipe]}
        result = run(told, study=study, folder=tmp_path / name, **changes)
        assert result.failure is None, result.failure
        return [progress.train_loss for progress in told.progresses] + [result.value]

    return run_losses


def key(number: int) -> CacheKey:
    return CacheKey(
        weights_hash="w", split_fingerprint="f", max_length=9, num_blocks=number,
        dtype="float32", kind="tokens", versions="1",
    )  # fmt: skip


def payloads(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*/payload.bin"))
    assert found
    return found


def cut(folder: Path) -> None:
    for payload in payloads(folder):
        os.truncate(payload, payload.stat().st_size // 2)


def lengthen(folder: Path) -> None:
    for payload in payloads(folder):
        os.truncate(payload, payload.stat().st_size + 4096)


def empty(folder: Path) -> None:
    for payload in payloads(folder):
        os.truncate(payload, 0)


def flip(folder: Path) -> None:
    for payload in payloads(folder):
        content = bytearray(payload.read_bytes())
        content[len(content) // 3] ^= 0x40  # the exponent of a number
        payload.write_bytes(bytes(content))


def take_away(folder: Path) -> None:
    for payload in payloads(folder):
        payload.unlink()


def put_a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


DAMAGES = [cut, lengthen, empty, flip, take_away, put_a_file_in_its_place]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_changes_no_value(
    damage: Callable[[Path], None], recipe: str, study: PreparedStudy, cached: Any, losses: Any,
    folder: Path,
) -> None:  # fmt: skip
    plain = losses(study, "plain", recipe)
    losses(cached(), "first", recipe)
    damage(folder)
    assert losses(cached(), "second", recipe) == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("recipe", ["tokens", "stages"])
@pytest.mark.parametrize("damage", [cut, empty, take_away, shutil.rmtree])
def test_damage_in_the_middle_of_a_trial_changes_no_value(
    damage: Callable[[Path], None], recipe: str, study: PreparedStudy, cached: Any, losses: Any,
    script: Any, folder: Path,
) -> None:  # fmt: skip
    class Vandal(script):  # type: ignore[misc]
        def progress(self, progress: Progress) -> Decision:
            if len(self.progresses) == 3:
                damage(folder)
            decision: Decision = super().progress(progress)
            return decision

    plain = losses(study, "plain", recipe)
    found = losses(cached(), "cached", recipe, Vandal())
    assert found == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "filled"])
def test_a_folder_that_cannot_be_written_is_told_once_and_changes_no_value(
    is_there: bool, code: int, study: PreparedStudy, cached: Any, losses: Any, folder: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    plain = losses(study, "plain", "tokens")
    if is_there:
        losses(cached(), "first", "tokens")
    own = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).startswith(str(folder)):
            raise OSError(code, os.strerror(code), str(path))
        return own(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    again = cached()
    with caplog.at_level(logging.WARNING, LOGGER):
        for name in ("second", "third"):
            assert losses(again, name, "tokens") == pytest.approx(plain, abs=1e-4)
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(folder) in message
    assert os.strerror(code) in message
    assert "computed at every step" in message


def test_damage_is_told_once(
    cached: Any, losses: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses(cached(), "first", "tokens")
    (flipped, _) = payloads(folder)
    content = bytearray(flipped.read_bytes())
    content[7] ^= 1
    flipped.write_bytes(bytes(content))
    study = cached()
    with caplog.at_level(logging.WARNING, LOGGER):
        losses(study, "second", "tokens")
        losses(study, "third", "tokens")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"`{flipped.parent}` is damaged. It is not used but made anew."


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (2**20, "is 0.000977 (1 MiB). They are"),
        (3 * 2**20, "is 0.00293 (3 MiB), and what is in use leaves too little of it. They are"),
    ],
)
def test_too_small_a_budget_is_told_once_per_study_with_numbers(
    budget: int, words: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = 2**19  # of fp32: 2 MiB
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):  # as three workers
            cache = PrefixCache(folder, budget)
            for _ in range(2):
                arrays = [cache.open(key(number), 1, wide, lambda _: None) for number in (1, 2)]
                assert arrays[1] is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "Activations of frozen blocks that take 2 MiB are not kept: `training.activation_cache_gib`"
        f" {words} computed at every step instead: slower, with the same results. Set a larger"
        " value to keep them."
    )


def test_another_budget_that_is_too_small_is_told_anew(
    cached: Any, losses: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        for budget in (2**13, 2**14):
            losses(cached(budget), f"trial{budget}", "tokens")
    assert len(caplog.records) == 2


def test_no_budget_is_the_users_wish_and_not_told(
    cached: Any, losses: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        losses(cached(0), "trial", "tokens")
    assert caplog.records == []
