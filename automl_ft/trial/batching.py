"""Are packed or bucketed batches faster for a model, on this device and with these rows?

Measured once, when a study is made, and stored with its facts: all its trials, on whatever day,
lay out their batches alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from automl_ft.data.batches import Padding, training_order
from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.capabilities import Capabilities
from automl_ft.models.freezing import FreezingPlan
from automl_ft.models.layer_map import LayerMap
from automl_ft.models.packed_model import PackedModel
from automl_ft.models.padded_model import PaddedModel
from automl_ft.trial.compute import compute_model
from automl_ft.trial.inputs import InputMaker
from automl_ft.trial.memory import is_out_of_memory

__all__ = ["BUCKETED", "PACKED", "choose_batching"]

PACKED = "packed"
BUCKETED = "bucketed"
_BATCH_SIZE = 8
_NUM_BATCHES = 2
_REPEATS = 3
_CLEARLY = 1.2
"""Bucketed batches must be faster by this factor, as they are the less random ones."""
_NOT_CLOSE = 2.0
"""Where packed batches are faster by this factor at first sight, one look is enough."""
_LONG_SECONDS = 3.0
"""Where the first look takes this long, the second one decides."""
_HARDLY_MATTERS_SECONDS = 0.02
"""Where these few batches take less, what is measured is Python, and packed it is."""


def choose_batching(
    model: PreTrainedModel,
    layer_map: LayerMap,
    capabilities: Capabilities,
    rows: tuple[EncodedSplit, Padding],
    precision: str,
) -> str:
    """Time forward and backward of a few batches both ways.

    Args:
        model: In fp32, on the device; its gradients are dropped.
        layer_map: Its parts.
        capabilities: What it allows.
        rows: The training rows, and how they are padded.
        precision: `fp32` or `bf16`.

    Returns:
        `packed`, unless the model does not allow it or bucketed batches are clearly faster.
    """
    if capabilities.packed is None:
        return BUCKETED
    try:
        return _measure(model, layer_map, capabilities, rows, precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return PACKED  # it takes less memory; trials find a micro-batch that fits
    finally:
        model.zero_grad(set_to_none=True)


def _measure(
    model: PreTrainedModel,
    layer_map: LayerMap,
    capabilities: Capabilities,
    rows: tuple[EncodedSplit, Padding],
    precision: str,
) -> str:
    plan = FreezingPlan(layer_map=layer_map, strategy="none")
    compute = compute_model(model, plan, precision)
    compute.enter(plan, 0)
    views: dict[str, PackedModel | PaddedModel] = {
        PACKED: capabilities.packed_model(compute.model, layer_map),
        BUCKETED: capabilities.padded_model(compute.model, layer_map),
    }
    sample = training_order(len(rows[0]), 0, 0)[: _BATCH_SIZE * _NUM_BATCHES]
    sorted_sample = sample[np.argsort(rows[0].lengths[sample], kind="stable")]
    orders = {PACKED: sample, BUCKETED: sorted_sample}  # the same rows
    runs: dict[str, Callable[[], float]] = {
        name: _runner(view, _maker(rows, model.device, is_packed=name == PACKED), orders[name])
        for name, view in views.items()
    }
    spent = sum([run() for run in runs.values()])  # warms up
    best = dict.fromkeys(runs, math.inf)
    for _ in range(_REPEATS if spent < _LONG_SECONDS else 1):
        for name, run in runs.items():
            best[name] = min(best[name], run())
        is_clear = best[BUCKETED] > _NOT_CLOSE * best[PACKED]
        if is_clear or best[PACKED] < _HARDLY_MATTERS_SECONDS:
            break
    is_slow = best[PACKED] >= _HARDLY_MATTERS_SECONDS
    return BUCKETED if is_slow and best[PACKED] > _CLEARLY * best[BUCKETED] else PACKED


def _maker(
    rows: tuple[EncodedSplit, Padding], device: torch.device, *, is_packed: bool
) -> InputMaker:
    split, padding = rows
    return InputMaker(
        split=split, padding=padding, is_packed=is_packed, vocabulary=None, device=device
    )


def _runner(
    view: PackedModel | PaddedModel, maker: InputMaker, order: npt.NDArray[np.int64]
) -> Callable[[], float]:
    """Return a function that trains an order's batches once and says how long it took."""
    batches = [order[start : start + _BATCH_SIZE] for start in range(0, len(order), _BATCH_SIZE)]

    def run() -> float:
        began = time.perf_counter()
        for rows in batches:
            with view.scores(maker.make(rows)) as scores:  # type: ignore[arg-type]
                scores.float().square().mean().backward()  # type: ignore[no-untyped-call]
        if maker.device.type == "cuda":
            torch.cuda.synchronize(maker.device)
        return time.perf_counter() - began

    return run
