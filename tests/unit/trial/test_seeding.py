"""Every generator is seeded, saved and restored."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from automl_ft.trial.seeding import random_states, restore_random_states, seed_everything

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float, float]:
    # The second normal draw of Python and NumPy is kept inside the generator: state too.
    return random.gauss(), float(np.random.normal()), float(torch.randn(())), random.random()


def test_equal_seeds_give_equal_draws() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first


def test_other_seeds_give_other_draws_everywhere() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_large_seeds_are_accepted() -> None:
    seed_everything(2**40 + 3)
    assert draw()


def test_restored_generators_go_on_where_they_were() -> None:
    seed_everything(5)
    draw()
    states = random_states(CPU)
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    restore_random_states(states, CPU)
    assert [draw() for _ in range(3)] == expected


def test_states_survive_a_checkpoint_that_may_hold_no_code() -> None:
    seed_everything(5)
    draw()
    buffer = io.BytesIO()
    torch.save(random_states(CPU), buffer)
    expected = [draw() for _ in range(3)]
    buffer.seek(0)
    restore_random_states(torch.load(buffer, weights_only=True), CPU)
    assert [draw() for _ in range(3)] == expected
