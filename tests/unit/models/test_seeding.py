"""New weights depend on their seed and leave random states alone."""

from __future__ import annotations

import torch

from automl_ft.models.seeding import seeded_init


def draw(seed: int) -> torch.Tensor:
    with seeded_init(seed):
        return torch.randn(4)


def test_draws_depend_on_the_seed_only():
    first = draw(1)
    torch.rand(3)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))


def test_the_state_outside_goes_on_as_if_nothing_was_drawn():
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    draw(5)
    assert torch.equal(torch.rand(2), wanted)


def test_the_state_is_restored_after_an_error():
    state = torch.get_rng_state()
    try:
        with seeded_init(1):
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), state)
