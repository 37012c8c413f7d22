"""Dropout masks of a trial that is trained with others, against those of its own dropout."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from automl_ft.models.dropout import DropoutStream, use_stream
from automl_ft.trial.masks import masks_of
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
    seed_everything(5, CPU)
    alone = random_states(CPU)
    masks = masks_of(5, CPU)
    masks_of(6, CPU)
    random.random()
    np.random.rand()
    found = masks.random_states()
    assert found.keys() == alone.keys()
    assert (found["python"], found["numpy"]) == (alone["python"], alone["numpy"])
    assert torch.equal(found["torch"], alone["torch"])


def test_on_other_devices_there_are_none():
    assert masks_of(5, torch.device("mps")) is None
