"""Heads with other seeds and dropout, against models that were loaded with them."""

from __future__ import annotations

import torch

from automl_ft.models.siblings import dropouts_of, dropouts_with, head_with_seed


def test_a_head_with_another_seed_is_the_one_that_loading_gives(load, architecture: str):
    loaded, other = load(architecture, seed=1), load(architecture, seed=2)
    head = head_with_seed(loaded.model, loaded.layer_map.head, 2, own_seed=1)
    assert head is not None
    assert head.keys() == set(loaded.layer_map.head)
    for name, drawn in head.items():
        assert torch.equal(drawn, other.model.get_parameter(name)), name


def test_the_model_keeps_its_own_head_and_the_generator_its_state(load):
    loaded = load("roberta", seed=1)
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    state = torch.get_rng_state()
    head_with_seed(loaded.model, loaded.layer_map.head, 2, own_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_head_that_another_seed_gave_is_not_redrawn(load):
    loaded = load("bert", seed=1)
    assert head_with_seed(loaded.model, loaded.layer_map.head, 2, own_seed=3) is None


def test_a_head_that_the_checkpoint_holds_is_not_redrawn(load):
    loaded = load("bert", "classifier", labels=("a", "b"), num_labels=2)
    assert not loaded.newly_initialised
    assert head_with_seed(loaded.model, loaded.layer_map.head, 2, own_seed=0) is None


def test_dropout_is_what_loading_with_another_value_gives(load, architecture: str):
    loaded, other = load(architecture, dropout=0.1), load(architecture, dropout=0.35)
    found = dropouts_with(loaded.model, 0.35)
    assert found == dropouts_of(other.model)
    assert dropouts_of(loaded.model) == dropouts_with(loaded.model, 0.1)
