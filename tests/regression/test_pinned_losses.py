"""Short trials at a fixed seed give the losses that they always gave.

`pin_losses.py` in this folder made the values and says when they may be made anew.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("pin_losses.py")
PINNED = json.loads(SCRIPT.with_name("pinned_losses.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-4  # processors and versions of torch round differently


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def measured(
    script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield script["measure"](tmp_path_factory.mktemp("pinned"))
    torch.set_num_threads(threads)


def test_every_recipe_is_pinned(script: dict[str, Any]) -> None:
    assert set(PINNED) == set(script["RECIPES"])


@pytest.mark.parametrize("recipe", PINNED)
def test_losses_are_as_pinned(measured: dict[str, Any], recipe: str) -> None:
    found, pinned = measured[recipe], PINNED[recipe]
    assert found["train_loss"] == pytest.approx(pinned["train_loss"], abs=TOLERANCE)
    assert found["validation_loss"] == pytest.approx(pinned["validation_loss"], abs=TOLERANCE)
    assert found["f1_macro"] == pytest.approx(pinned["f1_macro"], abs=TOLERANCE)


def test_recipes_differ_from_each_other() -> None:
    # A recipe whose losses are another's would pin nothing of its own.
    ends = [pinned["train_loss"][-1] for pinned in PINNED.values()]
    for number, end in enumerate(ends):
        assert all(abs(end - other) > 10 * TOLERANCE for other in ends[:number])


def test_training_went_on_while_it_was_measured() -> None:
    for recipe, pinned in PINNED.items():
        assert len(pinned["train_loss"]) == 12, recipe
        assert len(pinned["validation_loss"]) == 4, recipe
        assert pinned["train_loss"][0] != pytest.approx(pinned["train_loss"][-1], abs=1e-3), recipe
