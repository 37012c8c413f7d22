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

from automl_ft.models.packed import use_packed_attention
from automl_ft.trial.build import build_job
from automl_ft.trial.graphs import CudaRecorder, RecordedSteps
from automl_ft.trial.loop import Job, enter_stage
from automl_ft.trial.optimizer import clipped_gradients
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy
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


def test_one_that_did_would_be_found() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device=META).sum().item()
