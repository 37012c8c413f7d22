"""fp32 parameters are trained by what their bf16 copies compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    FNetConfig,
    FNetForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from automl_ft.models.freezing import plan_freezing
from automl_ft.models.layer_map import map_layers
from automl_ft.specs.hyperparameters import complete
from automl_ft.trial.build import build_job
from automl_ft.trial.compute import ComputeModel, compute_model, runs_in_bf16
from automl_ft.trial.prepare import PreparedStudy

GRADUAL = {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0}


@pytest.fixture
def make(study: PreparedStudy):
    """Return a function that makes a pair and its plan."""

    def pair(precision: str, **recipe: Any):
        loaded = study.load_model(study.checkpoint(None), dropout=0.1, seed=0)
        plan = plan_freezing(loaded.layer_map, complete(recipe))
        return compute_model(loaded.model, plan, precision), plan

    return pair


def fill_gradients(compute: ComputeModel, value: float) -> None:
    for copied, _ in compute.pairs:
        if copied.requires_grad:
            copied.grad = torch.full_like(copied, value)


def test_in_fp32_the_model_itself_computes(make: Any) -> None:
    compute, plan = make("fp32")
    assert compute.model is compute.master
    compute.enter(plan, 0)
    compute.collect()
    compute.refresh()
    compute.reload()
    assert compute.pairs == ()


def test_in_bf16_a_copy_computes_and_the_parameters_stay_in_fp32(make: Any) -> None:
    compute, _ = make("bf16")
    assert {p.dtype for p in compute.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in compute.master.parameters()} == {torch.float32}
    for copied, master in compute.pairs:
        assert torch.equal(copied, master.bfloat16())
    assert len(compute.pairs) == len(list(compute.master.parameters()))


@pytest.mark.parametrize(
    "recipe", [{"freezing": "head_only"}, {"freezing": "bottom_layers", "frozen_layers": 1}]
)
def test_pairs_are_of_what_may_be_trained(make: Any, recipe: dict[str, Any]) -> None:
    compute, plan = make("bf16", **recipe)
    wanted = plan.ever_trainable()
    assert len(compute.pairs) == len(wanted)
    named = {id(p): name for name, p in compute.master.named_parameters()}
    assert {named[id(master)] for _, master in compute.pairs} == wanted


def test_a_stage_is_entered_by_both_models(make: Any) -> None:
    compute, plan = make("bf16", **GRADUAL)
    for stage in range(plan.num_stages):
        compute.enter(plan, stage)
        for model in (compute.model, compute.master):
            found = {name for name, p in model.named_parameters() if p.requires_grad}
            assert found == plan.trainable(stage)
        modes = {name: module.training for name, module in compute.master.named_modules()}
        assert {name: m.training for name, m in compute.model.named_modules()} == modes


def test_gradients_of_copies_are_summed_in_fp32(make: Any) -> None:
    compute, plan = make("bf16")
    compute.enter(plan, 0)
    # 1 + 2^-9 three times over: bf16 has 8 bits, so that it would lose the small part.
    for value in (1.0, 2.0**-9, 2.0**-9):
        fill_gradients(compute, value)
        compute.collect()
    for copied, master in compute.pairs:
        assert copied.grad is None
        assert (master.grad == 1 + 2.0**-8).all()


def test_gradients_of_a_step_do_not_stay_for_the_next(make: Any) -> None:
    compute, plan = make("bf16")
    compute.enter(plan, 0)
    for value in (3.0, 5.0):
        fill_gradients(compute, value)
        compute.collect()
        assert all((master.grad == value).all() for _, master in compute.pairs)
        for _, master in compute.pairs:
            master.grad = None


def test_what_is_frozen_gets_no_gradient(make: Any) -> None:
    compute, plan = make("bf16", **GRADUAL)
    compute.enter(plan, 0)
    fill_gradients(compute, 1.0)
    compute.collect()
    found = {name for name, p in compute.master.named_parameters() if p.grad is not None}
    assert found == plan.trainable(0)


def test_copies_follow_the_parameters_that_have_moved(make: Any) -> None:
    compute, plan = make("bf16")
    compute.enter(plan, 0)
    (moved, master), (still, other) = compute.pairs[:2]
    before = still.detach().clone()
    master.grad = torch.ones_like(master)
    with torch.no_grad():
        master.add_(1)
        other.add_(1)
    compute.refresh()
    assert torch.equal(moved, master.bfloat16())
    assert torch.equal(still, before)
    compute.reload()
    assert torch.equal(still, other.bfloat16())


def test_steps_smaller_than_a_bf16_rounding_add_up(study_with: Any, make_spec: Any) -> None:
    job = build_job(make_spec(dropout=0.0), study_with(precision="bf16"))
    (copied, master), before = job.compute.pairs[0], job.compute.pairs[0][0].detach().clone()
    step = 2.0**-14
    with torch.no_grad():
        master.fill_(1.0)
    for _ in range(200):
        master.grad = torch.ones_like(master)
        with torch.no_grad():
            master.add_(step)
        job.compute.refresh()
    assert not torch.equal(copied, before)
    assert (master == 1 + 200 * step).all()
    assert (copied == torch.tensor(1 + 200 * step).bfloat16()).all()


def test_training_leaves_fp32_parameters_optimiser_state_and_scores(
    study_with: Any, make_spec: Any
) -> None:
    job = build_job(make_spec(dropout=0.1), study_with(precision="bf16"))
    job.compute.enter(job.plan, 0)
    job.stepper.forward.enter(job.plan, 0, num_passes=1)
    for step in range(3):
        job.stepper.backward(np.arange(8), 0, step)
        job.optimizer.step()
        job.compute.refresh()
        job.optimizer.zero_grad()
    state = [value for values in job.optimizer.state.values() for value in values.values()]
    assert {value.dtype for value in state} == {torch.float32}
    assert {p.dtype for p in job.model.parameters()} == {torch.float32}
    job.model.eval()
    rough = np.abs(job.validation.exact.all_scores(4))
    # Scores of a bf16 model would be multiples of its few bits.
    assert not np.array_equal(rough, torch.from_numpy(rough).bfloat16().float().numpy())


def test_tables_that_the_code_makes_stay_in_fp32() -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, num_attention_heads=2, num_key_value_heads=2,
        num_hidden_layers=2, intermediate_size=16, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    plan = plan_freezing(map_layers(model), complete({}))
    twin = compute_model(model, plan, "bf16").model
    frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert torch.equal(dict(twin.named_buffers())["model.rotary_emb.inv_freq"], frequencies)


def test_a_model_without_some_operator_in_bf16_is_found_out(make: Any) -> None:
    compute, _ = make("fp32")
    assert runs_in_bf16(compute.model)
    assert {p.dtype for p in compute.model.parameters()} == {torch.float32}
    config = FNetConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, intermediate_size=16, num_labels=2,
        max_position_embeddings=16,
    )  # fmt: skip
    assert not runs_in_bf16(FNetForSequenceClassification(config))


def test_a_lack_of_memory_is_no_missing_operator(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("on purpose")

    compute, _ = make("fp32")
    monkeypatch.setattr(type(compute.model), "forward", fail)
    with pytest.raises(MemoryError, match="on purpose"):
        runs_in_bf16(compute.model)
