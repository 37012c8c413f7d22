"""Which parameter trains at which rate, with which decay, and how L1 shrinks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from automl_ft.models.layers import decay_exempt, layer_depths
from automl_ft.trial.optimizer import (
    OptimizerSettings,
    allocate_state,
    build_optimizer,
    clipped_gradients,
    shrink_l1,
)
from automl_ft.trial.prepare import PreparedStudy


@pytest.fixture
def loaded(study: PreparedStudy):
    return study.load_model(study.checkpoint(None), dropout=None, seed=0)


def settings(**changes: float) -> OptimizerSettings:
    plain = {"learning_rate": 1e-3, "weight_decay": 0.1, "layerwise_lr_decay": 0.5}
    return OptimizerSettings(**{**plain, **changes})


def build(loaded, names=None, **changes: float):
    """Build the optimiser and return the group of each parameter's name."""
    model = loaded.model
    wanted = names if names is not None else [name for name, _ in model.named_parameters()]
    optimizer = build_optimizer(
        model, wanted, layer_depths(loaded.layer_map), decay_exempt(model), settings(**changes)
    )
    names_by_id = {id(p): name for name, p in model.named_parameters()}
    groups = {names_by_id[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
    return optimizer, groups


def test_every_wanted_parameter_is_in_one_group(loaded) -> None:
    optimizer, groups = build(loaded)
    total = sum(len(group["params"]) for group in optimizer.param_groups)
    assert total == len(groups) == len(list(loaded.model.parameters()))


def test_parameters_that_never_train_are_left_out(loaded) -> None:
    _, groups = build(loaded, names=["classifier.weight", "classifier.bias"])
    assert set(groups) == {"classifier.weight", "classifier.bias"}


def test_the_rate_falls_from_the_head_down(loaded) -> None:
    _, groups = build(loaded)
    assert groups["classifier.weight"]["lr"] == 1e-3
    assert groups["bert.pooler.dense.weight"]["lr"] == 1e-3
    assert groups["bert.encoder.layer.1.output.dense.weight"]["lr"] == 5e-4
    assert groups["bert.encoder.layer.0.output.dense.weight"]["lr"] == 2.5e-4
    assert groups["bert.embeddings.word_embeddings.weight"]["lr"] == 1.25e-4


def test_without_layerwise_decay_all_rates_are_equal(loaded) -> None:
    optimizer, _ = build(loaded, layerwise_lr_decay=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_norms_and_biases_are_exempt_from_decay(loaded) -> None:
    _, groups = build(loaded)
    exempt = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert exempt == {name for name in groups if name.endswith("bias") or "LayerNorm" in name}
    assert all(g["is_decayed"] == (name not in exempt) for name, g in groups.items())


def test_groups_come_in_a_fixed_order(loaded) -> None:
    first, _ = build(loaded)
    second, _ = build(loaded)
    assert [len(g["params"]) for g in first.param_groups] == [
        len(g["params"]) for g in second.param_groups
    ]


def test_the_first_step_is_bias_corrected(loaded) -> None:
    # With bias correction Adam's first step is the rate itself, whatever the gradient's size.
    optimizer, _ = build(loaded, weight_decay=0.0)
    weight = loaded.model.classifier.weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    torch.testing.assert_close(before - weight.detach(), torch.full_like(weight, 1e-3))


@pytest.fixture
def shrinkable() -> torch.optim.Optimizer:
    values = torch.tensor([0.5, -0.5, 0.01, -0.01, 0.0])
    decayed, exempt = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    decayed.grad, exempt.grad = torch.ones(5), torch.ones(5)
    return torch.optim.SGD(
        [
            {"params": [decayed], "lr": 0.2, "is_decayed": True},
            {"params": [exempt], "lr": 0.2, "is_decayed": False},
        ]
    )


def first_of(optimizer: torch.optim.Optimizer, group: int) -> torch.Tensor:
    return optimizer.param_groups[group]["params"][0].detach()


def test_l1_is_the_soft_threshold_at_rate_times_strength(shrinkable) -> None:
    shrink_l1(shrinkable, 0.1)
    expected = torch.tensor([0.48, -0.48, 0.0, 0.0, 0.0])
    torch.testing.assert_close(first_of(shrinkable, 0), expected)


def test_l1_leaves_norms_and_biases_alone(shrinkable) -> None:
    before = first_of(shrinkable, 1).clone()
    shrink_l1(shrinkable, 0.1)
    assert torch.equal(first_of(shrinkable, 1), before)


def test_l1_follows_the_scheduled_rate(shrinkable) -> None:
    shrinkable.param_groups[0]["lr"] = 0.0
    before = first_of(shrinkable, 0).clone()
    shrink_l1(shrinkable, 0.1)
    assert torch.equal(first_of(shrinkable, 0), before)


def test_l1_leaves_parameters_alone_that_are_frozen_now(shrinkable) -> None:
    shrinkable.param_groups[0]["params"][0].grad = None
    before = first_of(shrinkable, 0).clone()
    shrink_l1(shrinkable, 0.1)
    assert torch.equal(first_of(shrinkable, 0), before)


def test_no_l1_changes_nothing(shrinkable) -> None:
    before = first_of(shrinkable, 0).clone()
    shrink_l1(shrinkable, 0.0)
    assert torch.equal(first_of(shrinkable, 0), before)


def pair(*, fused: bool) -> list[torch.optim.AdamW]:
    """Return two optimisers of equal parameters, of which one has no gradient."""
    torch.manual_seed(0)
    first = nn.ParameterList([torch.randn(3, 4).t(), torch.randn(5), torch.randn(2)])
    found = []
    for parameters in (first, copy.deepcopy(first)):
        groups = [{"params": [parameters[0]]}, {"params": [parameters[1], parameters[2]]}]
        found.append(torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1, fused=fused))
        for number in (0, 1):
            parameters[number].grad = torch.full_like(parameters[number], 0.5)
    return found


def parameters_of(optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("fused", [True, False])
def test_state_that_was_allocated_first_is_what_a_step_makes(fused: bool) -> None:
    plain, early = pair(fused=fused)
    for _ in range(3):
        plain.step()
        allocate_state(early)
        early.step()
    assert len(early.state) == 2, "none where there is no gradient"
    for one, other in zip(parameters_of(plain), parameters_of(early), strict=True):
        assert torch.equal(one, other)
        assert plain.state.get(one, {}).keys() == early.state.get(other, {}).keys()
        for name, value in plain.state.get(one, {}).items():
            found = early.state[other][name]
            assert torch.equal(found, value)
            assert (found.dtype, found.stride()) == (value.dtype, value.stride())


def test_allocating_moves_nothing_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, _ = pair(fused=True)
    before = [p.detach().clone() for p in parameters_of(optimizer)]
    own, calls = torch.zeros_like, 0

    def fail_at_third(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "zeros_like", fail_at_third)
    with pytest.raises(torch.OutOfMemoryError):
        allocate_state(optimizer)
    assert len(optimizer.state) == 1
    allocate_state(optimizer)
    assert [len(state) for state in optimizer.state.values()] == [3, 3]
    for found, expected in zip(parameters_of(optimizer), before, strict=True):
        assert torch.equal(found, expected)


def gradients_and_step(max_norm: float, *, is_fused: bool) -> tuple[Tensor, list[Tensor]]:
    """Take a step with given gradients; return the norm and what became of the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=is_fused)
    norms = []
    for step in range(3):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (number - step) + 0.05)
        with clipped_gradients(optimizer, list(model.parameters()), max_norm) as norm:
            norms.append(norm)
            optimizer.step()
    return torch.stack(norms), [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 0.9, 100.0])
def test_a_fused_step_clips_as_torch_does(max_norm: float) -> None:
    norms, moved = gradients_and_step(max_norm, is_fused=True)
    expected_norms, expected = gradients_and_step(max_norm, is_fused=False)
    torch.testing.assert_close(norms, expected_norms)
    torch.testing.assert_close(moved, expected)


def test_a_step_that_is_not_clipped_is_not_scaled_by_the_one_before() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for size, expected in ((100.0, True), (0.1, False)):
        weight.grad = torch.full((4,), size)
        with clipped_gradients(optimizer, [weight], 1.0):
            assert (optimizer.grad_scale is not None) is expected
        assert optimizer.grad_scale is None


def test_nothing_to_clip_has_no_norm() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)
    with clipped_gradients(optimizer, [], 1.0) as norm:
        assert norm == 0
