"""How long does a model take, on its device, to train on some of a study's rows, and to score some?

What is concluded from these times is left to `trial.batching` and `trial.look`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.batches import Padding, training_order
from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.capabilities import Capabilities
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
_ON_CPU = 8, 16
_ON_GPU = 32, 256
"""Rows of a training batch, and rows that are scored at once: a GPU is not busy with fewer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stopwatch:
    """Times two training batches, and one of validation, laid out in either way."""

    loaded: LoadedModel
    """The model in fp32, on its device."""
    capabilities: Capabilities
    """What it allows."""
    compute: ComputeModel
    """The model that computes in training."""
    splits: Mapping[str, EncodedSplit]
    """The encoded rows: `train` and `validation`."""
    padding: Padding
    """How rows are padded."""
    precision: str
    """In which training computes; validation does in fp32."""
    rows: Mapping[str, npt.NDArray[np.int64]]
    """By split the rows that are timed."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.loaded.model.device

    def num_tokens(self, split: str) -> int:
        """Return the tokens that are timed.

        Args:
            split: `train` or `validation`.

        Returns:
            Tokens, without padding.
        """
        return int(self.splits[split].lengths[self.rows[split]].sum())

    def train(self, batching: str) -> float:
        """Run forward and backward of the training batches.

        Args:
            batching: `packed` or `bucketed`.

        Returns:
            Seconds.
        """
        plan = FreezingPlan(layer_map=self.loaded.layer_map, strategy="none")
        self.compute.enter(plan, 0)
        rows = self.rows["train"]
        if batching == BUCKETED:
            rows = rows[np.argsort(self.splits["train"].lengths[rows], kind="stable")]
        view, maker = self._view(batching, is_training=True), self._maker(batching, "train")

        def run() -> None:
            for batch in np.array_split(rows, min(_NUM_BATCHES, len(rows))):
                products = training_products(self.precision, self.device)
                with products, view.scores(maker.make(batch)) as scores:  # type: ignore[arg-type]
                    scores.float().square().mean().backward()  # type: ignore[no-untyped-call]

        return self._seconds(run)

    @torch.inference_mode()
    def validate(self, batching: str) -> float:
        """Score the validation batch in fp32.

        Args:
            batching: `packed` or `bucketed`.

        Returns:
            Seconds.
        """
        self.loaded.model.eval()  # type: ignore[no-untyped-call]
        view, maker = self._view(batching, is_training=False), self._maker(batching, "validation")

        def score() -> Tensor:
            inputs = maker.make(self.rows["validation"])
            with view.scores(inputs) as scores:  # type: ignore[arg-type]
                return scores.float().cpu()

        return self._seconds(score)

    def _view(self, batching: str, *, is_training: bool) -> PackedModel | PaddedModel:
        model = self.compute.model if is_training else self.loaded.model
        if batching == PACKED:
            return self.capabilities.packed_model(model, self.loaded.layer_map)
        return self.capabilities.padded_model(model, self.loaded.layer_map)

    def _maker(self, batching: str, split: str) -> InputMaker:
        return InputMaker(
            split=self.splits[split],
            padding=self.padding,
            is_packed=batching == PACKED,
            vocabulary=None,
            device=self.device,
        )

    def _seconds(self, run: Callable[[], object]) -> float:
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
    splits: Mapping[str, EncodedSplit],
    padding: Padding,
    precision: str,
) -> Stopwatch:
    """Choose the rows that are timed, and make the model that computes.

    Args:
        loaded: A model in fp32, on its device; it gets gradients, and its mode changes.
        capabilities: What it allows.
        splits: The encoded rows: `train` and `validation`.
        padding: How rows are padded.
        precision: In which training computes: `fp32`, `tf32` or `bf16`.

    Returns:
        The stopwatch.
    """
    model = loaded.model
    batch_size, at_once = _ON_CPU if model.device.type == "cpu" else _ON_GPU
    plan = FreezingPlan(layer_map=loaded.layer_map, strategy="none")
    order = training_order(len(splits["train"]), 0, 0)
    return Stopwatch(
        loaded=loaded,
        capabilities=capabilities,
        compute=compute_model(model, plan, precision),
        splits=splits,
        padding=padding,
        precision=precision,
        rows={
            "train": order[: batch_size * _NUM_BATCHES],
            "validation": _middle(splits["validation"].lengths, at_once),
        },
    )


def _middle(lengths: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """Return rows of similar length, as they are scored, about the one that halves all tokens."""
    order = np.argsort(lengths, kind="stable")
    tokens = np.cumsum(lengths[order])
    middle = int(np.searchsorted(tokens, tokens[-1] / 2))
    start = max(0, min(middle - number // 2, len(order) - number))
    return np.sort(order[start : start + number])
