"""How long does a model take, on its device, to train on some of a study's rows?

What is concluded from these times is left to `trial.batching`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from automl_ft.data.batches import Padding, training_order
from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.capabilities import Capabilities
from automl_ft.models.dropout import DropoutStream, use_stream
from automl_ft.models.freezing import FreezingPlan
from automl_ft.models.load import LoadedModel
from automl_ft.models.packed_model import PackedModel
from automl_ft.models.padded_model import PaddedModel
from automl_ft.trial.compute import ComputeModel, compute_model
from automl_ft.trial.inputs import InputMaker
from automl_ft.trial.precision import training_products

__all__ = ["BUCKETED", "PACKED", "Stopwatch", "make_stopwatch"]

PACKED = "packed"
BUCKETED = "bucketed"
_NUM_BATCHES = 2
_ON_CPU, _ON_GPU = 8, 32
"""Rows of a batch: a GPU is not busy with fewer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stopwatch:
    """Times two training batches, laid out in either way."""

    loaded: LoadedModel
    """The model in fp32, on its device."""
    capabilities: Capabilities
    """What it allows."""
    compute: ComputeModel
    """The model that computes in training."""
    split: EncodedSplit
    """The training rows."""
    padding: Padding
    """How rows are padded."""
    precision: str
    """In which training computes."""
    rows: npt.NDArray[np.int64]
    """Those that are timed."""
    stream: DropoutStream | None = None
    """Where dropout masks come from, as in trials; None for torch's own generator."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.loaded.model.device

    def train(self, batching: str) -> float:
        """Run forward and backward of the training batches.

        Args:
            batching: `packed` or `bucketed`.

        Returns:
            Seconds.
        """
        plan = FreezingPlan(layer_map=self.loaded.layer_map, strategy="none")
        self.compute.enter(plan, 0)
        rows = self.rows
        if batching == BUCKETED:
            rows = rows[np.argsort(self.split.lengths[rows], kind="stable")]
        view, maker = self.view(batching), self.maker(batching)

        def run() -> None:
            for batch in np.array_split(rows, min(_NUM_BATCHES, len(rows))):
                products = training_products(self.precision, self.device)
                with products, view.scores(maker.make(batch)) as scores:  # type: ignore[arg-type]
                    scores.float().square().mean().backward()  # type: ignore[no-untyped-call]

        return self.seconds(run)

    def view(self, batching: str) -> PackedModel | PaddedModel:
        """Return the model as it is run on a layout.

        Args:
            batching: `packed` or `bucketed`.

        Returns:
            A view of the model that computes.
        """
        if batching == PACKED:
            return self.capabilities.packed_model(
                self.compute.model, self.loaded.layer_map, stream=self.stream
            )
        return self.capabilities.padded_model(self.compute.model, self.loaded.layer_map)

    def maker(self, batching: str, *, in_few_shapes: bool = False) -> InputMaker:
        """Return what makes inputs of the rows.

        Args:
            batching: `packed` or `bucketed`.
            in_few_shapes: Whether packed rows are filled up to one of a few shapes.

        Returns:
            The maker.
        """
        return InputMaker(
            split=self.split,
            padding=self.padding,
            is_packed=batching == PACKED,
            vocabulary=None,
            device=self.device,
            in_few_shapes=in_few_shapes,
        )

    def seconds(self, run: Callable[[], object]) -> float:
        """Time something on the device.

        Args:
            run: Called once.

        Returns:
            Seconds until the device was done.
        """
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_stopwatch(
    loaded: LoadedModel,
    capabilities: Capabilities,
    train: EncodedSplit,
    padding: Padding,
    precision: str,
    *,
    has_stream: bool = True,
) -> Stopwatch:
    """Choose the rows that are timed, and make the model that computes.

    Args:
        loaded: A model in fp32, on its device; it gets gradients, its mode changes, and on a CPU in
            fp32 its dropout layers draw from a stream from now on.
        capabilities: What it allows.
        train: The training rows.
        padding: How rows are padded.
        precision: In which training computes: `fp32`, `tf32` or `bf16`.
        has_stream: Whether dropout masks come from where trials on a CPU take them; steps that are
            recorded need torch's own.

    Returns:
        The stopwatch.
    """
    model = loaded.model
    batch_size = _ON_CPU if model.device.type == "cpu" else _ON_GPU
    plan = FreezingPlan(layer_map=loaded.layer_map, strategy="none")
    order = training_order(len(train), 0, 0)
    compute, stream = compute_model(model, plan, precision), None
    if has_stream and model.device.type == "cpu":
        stream = DropoutStream(0)
        use_stream(compute.model, stream)
    return Stopwatch(
        loaded=loaded,
        capabilities=capabilities,
        compute=compute,
        split=train,
        padding=padding,
        precision=precision,
        rows=order[: batch_size * _NUM_BATCHES],
        stream=stream,
    )
