"""No step waits for a value on the device.

Tensors on torch's meta device have shapes but no values: whatever needs one of their values, and
would have to wait for a GPU, raises. So a step that runs there never waits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import optimizer as optimizer_of_torch

from automl_ft.models.packed import use_packed_attention
from automl_ft.trial.build import build_job
from automl_ft.trial.graphs import CudaRecorder, RecordedSteps
from automl_ft.trial.loop import Job, _update, enter_stage
from automl_ft.trial.optimizer import allocate_state, clipped_gradients
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.schedule import build_schedule
from automl_ft.trial.state import TrainingState
from automl_ft.trial.step import StepRunner
from automl_ft.trial.techniques import ALL

META = torch.device("meta")
ROWS = np.array([3, 0, 7, 5, 1])


def moved(job: Job) -> StepRunner:
    """Put everything that a step computes with onto the meta device."""
    assert isinstance(job.stepper, StepRunner)
    enter_stage(job, TrainingState())
    for model in {id(m): m for m in (job.compute.model, job.compute.master)}.values():
        model.to(META)
    # What `Capabilities.padded_model` does with a model that is there already.
    use_packed_attention(job.compute.model)
    forward = job.stepper.forward
    forward.maker = dataclasses.replace(forward.maker, device=META)
    stored = forward.activations
    if stored is not None and stored.is_pooled:
        forward.activations = dataclasses.replace(stored, values=stored.values.to(META))
    # Moving to this device makes new parameters.
    masters = dict(job.compute.master.named_parameters())
    trained = job.plan.ever_trainable() if job.compute.pairs else ()
    copies = job.compute.model.named_parameters()
    pairs = tuple((copied, masters[name]) for name, copied in copies if name in trained)
    buffers = tuple(torch.empty_like(master) for _, master in pairs)
    compute = dataclasses.replace(job.compute, pairs=pairs, buffers=buffers)
    return dataclasses.replace(job.stepper, stream=None, compute=compute)


@pytest.fixture
def cached(study_with: Any, tmp_path: Path) -> Any:
    def make(**changes: Any) -> PreparedStudy:
        cache = PrefixCache(tmp_path / "activations", 10**8)
        return dataclasses.replace(study_with(**changes), cache=cache)

    return make


@pytest.mark.parametrize("batching", ["packed", "recorded", "bucketed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"freezing": "none", "dropout": 0.3},
        {"freezing": "none", "mixup": 0.4, "label_smoothing": 0.1},
        {"freezing": "bottom_layers", "frozen_layers": 1},
        {"freezing": "head_only"},
    ],
    ids=["full", "mixup", "bottom layers", "head only"],
)
def test_a_step_needs_no_value_from_the_device(
    cached: Any, make_spec: Any, precision: str, batching: str, recipe: dict[str, Any]
) -> None:
    techniques = dataclasses.replace(ALL, packed=batching != "bucketed", cheap_dropout=False)
    job = build_job(make_spec(**recipe), cached(precision=precision), techniques)
    stepper = moved(job)
    if batching == "recorded":
        forward = stepper.forward
        forward.maker = dataclasses.replace(forward.maker, in_few_shapes=True)
        stepper.graphs = RecordedSteps(CudaRecorder(), stepper.compute)
    loss = stepper.backward(ROWS, 0, 0)
    assert loss.device == META
    trained = [p for p in job.model.parameters() if p.grad is not None]
    with clipped_gradients(job.optimizer, trained, 1.0) as norm:
        assert norm.device == META
        assert job.optimizer.grad_scale.device == META
    stepper.compute.refresh()


class LossesOnMeta:
    """Takes losses in without looking at them, as `LossLog` does on a GPU."""

    def __init__(self) -> None:
        self.num_added = 0

    def add(self, loss: torch.Tensor, norm: torch.Tensor, step: int) -> None:
        assert loss.device == norm.device == META
        self.num_added += 1


def with_moved_optimizer(job: Job, stepper: StepRunner, names: dict[int, str]) -> Job:
    """Return the job with the optimiser's parameters, state and schedule on the meta device."""
    masters = dict(stepper.compute.master.named_parameters())
    groups = [
        {**group, "params": [masters[names[id(p)]] for p in group["params"]]}
        for group in job.optimizer.param_groups
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    return dataclasses.replace(
        job,
        optimizer=optimizer,
        schedule=build_schedule("linear", optimizer, 0.1, 10),
        parameters=tuple(p for group in groups for p in group["params"]),
        stepper=stepper,
        compute=stepper.compute,
        losses=LossesOnMeta(),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_the_update_needs_no_value_from_the_device(
    cached: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch, precision: str, l1: float
) -> None:
    # torch steps in one kernel on devices that it knows to have it; its meta kernel is there too.
    known = [*optimizer_of_torch._get_fused_kernels_supported_devices(), "meta"]
    monkeypatch.setattr(optimizer_of_torch, "_get_fused_kernels_supported_devices", lambda: known)
    techniques = dataclasses.replace(ALL, cheap_dropout=False)
    spec = make_spec(freezing="none", dropout=0.3, l1=l1, weight_decay=0.1)
    job = build_job(spec, cached(precision=precision), techniques)
    names = {id(p): name for name, p in job.compute.master.named_parameters()}
    job = with_moved_optimizer(job, moved(job), names)
    for step in (1, 2):
        allocate_state(job.optimizer)
        _update(job, job.stepper.backward(ROWS, 0, step), step)
    assert job.losses.num_added == 2
    assert {v.device for state in job.optimizer.state.values() for v in state.values()} == {META}
    assert all(p.grad is None for p in job.parameters)


def test_one_that_did_would_be_found() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device=META).sum().item()
