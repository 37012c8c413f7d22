"""Dropout masks of a trial that is trained with others, against those of its own dropout."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from automl_ft.models.dropout import DropoutStream, use_stream
from automl_ft.trial.masks import _CudaMasks, masks_of
from automl_ft.trial.seeding import random_states, seed_everything

CPU = torch.device("cpu")


def test_masks_are_those_that_the_trials_own_layers_draw():
    stream = DropoutStream(5)
    layers = nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.6))
    use_stream(layers, stream)
    masks = masks_of(5, CPU)
    for step in (0, 1, 0):
        stream.begin(step)
        masks.begin(step)
        for layer, p in zip(layers, (0.3, 0.6), strict=True):
            values = torch.randn(3, 5)
            mask = masks.draw(torch.Size((3, 5)), p, values.dtype)
            assert torch.equal(values * mask, layer(values))


def test_the_generators_of_a_trial_are_those_that_it_starts_with_alone():
    seed_everything(5)
    alone = random_states(CPU)
    masks = masks_of(5, CPU)
    masks_of(6, CPU)
    random.random()
    np.random.rand()
    found = masks.random_states()
    assert found.keys() == alone.keys()
    assert (found["python"], found["numpy"]) == (alone["python"], alone["numpy"])
    assert torch.equal(found["torch"], alone["torch"])


@pytest.fixture
def card(monkeypatch):
    """Masks as on a GPU, from a generator on the CPU."""
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state)
    )
    torch.manual_seed(5)
    return _CudaMasks(CPU, {"cuda": torch.get_rng_state()})


def drawn(masks, step, number=2):
    masks.begin(step)
    return [masks.draw(torch.Size((3, 50)), 0.5, torch.float32) for _ in range(number)]


def test_on_a_gpu_a_step_that_is_begun_anew_draws_the_same_masks(card):
    first, second = drawn(card, 0), drawn(card, 1)
    again = drawn(card, 1)
    assert all(torch.equal(one, other) for one, other in zip(second, again, strict=True))
    assert not torch.equal(first[0], second[0])


def test_on_a_gpu_the_generator_is_written_as_it_was_before_such_a_step(card):
    drawn(card, 0)
    before = card.random_states()["cuda"]
    drawn(card, 1)
    card.begin(1)
    assert torch.equal(card.random_states()["cuda"], before)


def test_on_a_gpu_a_step_that_has_not_begun_changes_nothing(card):
    drawn(card, 0)
    before = card.random_states()["cuda"]
    card.begin(1)
    assert torch.equal(card.random_states()["cuda"], before)


def test_on_other_devices_there_are_none():
    assert masks_of(5, torch.device("mps")) is None
