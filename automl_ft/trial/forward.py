"""How do the rows of a trial become scores, at each stage of its freezing plan?

The packed path and the padded one stand behind one interface; where the blocks below a boundary
are frozen, both start from stored activations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.augmentation import Augmentation, augmenter
from automl_ft.data.batches import eval_batches
from automl_ft.models.freezing import FreezingPlan
from automl_ft.models.packed_model import PackedModel
from automl_ft.models.padded_model import PaddedModel
from automl_ft.trial.activations import Activations, ActivationSource
from automl_ft.trial.inputs import InputMaker, Inputs
from automl_ft.trial.precision import training_products

__all__ = ["Forward", "ModelInputs"]

_WORTH_STORING = 0.1
"""Passes over the rows from which on an array is stored that a pass comes by: storing takes about
as long as computing a tenth of one block."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelInputs:
    """All that the scores of some rows depend on, besides the model."""

    inputs: Inputs | None
    """Their tokens; None where `hidden` stands for all blocks."""
    hidden: Tensor | None
    """Stored activations of the lowest blocks; None where all is computed."""
    num_blocks: int
    """How many blocks `hidden` stands for."""


@dataclass(kw_only=True, slots=True, eq=False)
class Forward:
    """Scores of the rows of one split under one model."""

    view: PackedModel | PaddedModel
    """The model."""
    maker: InputMaker
    """Makes its inputs."""
    source: ActivationSource | None
    """Where stored activations come from; None for none."""
    deepest_prefix: int
    """Blocks that activations can stand in for, at most; -1 for none."""
    precision: str = "fp32"
    """In which whole splits are scored; `tf32` shortens factors on a GPU."""
    is_sorted: bool = True
    """Whether splits are scored in batches of rows of similar length."""
    activations: Activations | None = None
    """Those of the stage; None where all is computed."""
    stage: int | None = None
    """The stage that they are of; None before the first."""

    def enter(
        self,
        plan: FreezingPlan,
        stage: int,
        *,
        num_passes: float,
        stages: Collection[int] | None = None,
    ) -> None:
        """Take the stored activations of a stage, if it is a new one.

        Args:
            plan: The freezing plan.
            stage: Its stage.
            num_passes: How often the stage reads each row.
            stages: In which all rows are scored; in others some are, for whom nothing is stored
                that is not there yet. None for all stages.
        """
        if stage == self.stage:
            return
        is_first, self.stage, self.activations = self.stage is None, stage, None
        num_blocks = self.boundary(plan, stage)
        if self.source is None or num_blocks < 1:
            return
        # A trial that goes on fills what it would have had if it had never stopped.
        served = [
            other
            for other in range(0 if is_first else stage, plan.num_stages)
            if stages is None or other in stages
        ]
        needed = self._passes_by_boundary(plan, stage, num_passes, served)
        self.activations = self.source.open(
            self.view,
            num_blocks,
            later=[
                number
                for number, passes in sorted(needed.items(), reverse=True)
                if number < num_blocks and passes >= _WORTH_STORING
            ],
            may_fill=stage in served and self._pays(needed),
        )

    def boundary(self, plan: FreezingPlan, stage: int) -> int:
        """Return how many blocks activations can stand in for in a stage.

        Args:
            plan: The freezing plan.
            stage: Its stage.

        Returns:
            Blocks; -1 where not even the embeddings are frozen.
        """
        frozen = plan.frozen_prefix(stage)
        return -1 if frozen is None else min(frozen, self.deepest_prefix)

    def reads_pooled(self, plan: FreezingPlan, stage: int) -> bool:
        """Tell whether stored activations can stand in for all blocks of a stage.

        Args:
            plan: The freezing plan.
            stage: Its stage.

        Returns:
            Whether nothing but the head is left to compute.
        """
        return self.source is not None and self.boundary(plan, stage) == plan.layer_map.num_layers

    def stored_boundaries(self, plan: FreezingPlan) -> frozenset[int]:
        """Return at which boundaries a trial may compute activations that are to be stored.

        Args:
            plan: The freezing plan.

        Returns:
            Numbers of blocks, from 1 up; none where nothing is frozen or stored.
        """
        if self.source is None:
            return frozenset()
        depths = (self.boundary(plan, stage) for stage in range(plan.num_stages))
        return frozenset(depth for depth in depths if depth >= 1)

    @property
    def has_filled(self) -> bool:
        """Whether activations were computed here to be stored."""
        return self.source is not None and self.source.has_filled

    def _passes_by_boundary(
        self, plan: FreezingPlan, stage: int, num_passes: float, stages: Collection[int]
    ) -> dict[int, float]:
        """Return how often some stages of a trial read each row at each boundary."""
        passes: dict[int, float] = {}
        for other in stages:
            num_blocks = self.boundary(plan, other)
            if num_blocks >= 1:
                share = num_passes * plan.share(other) / plan.share(stage)
                passes[num_blocks] = passes.get(num_blocks, 0.0) + share
        return passes

    def _pays(self, passes: Mapping[int, float]) -> bool:
        """Tell whether one pass over the rows costs less than it saves.

        One up to the states that the head reads always does: they are small, and the first thing
        that other trials want.
        """
        deepest = max(passes)
        if deepest == self.view.layer_map.num_layers:
            return True
        return sum(number * share for number, share in passes.items()) >= deepest

    def model_inputs(
        self, rows: npt.NDArray[np.int64], augmentation: Augmentation | None, key: tuple[int, int]
    ) -> ModelInputs:
        """Make what the model is called with for some rows.

        Args:
            rows: Row numbers, shape (B,).
            augmentation: What is done to them; None for nothing.
            key: Seed and epoch, for the augmentation.

        Returns:
            Its inputs, on the device.
        """
        if self.activations is not None and not self.activations.is_whole():
            self.activations = None
        stored = self.activations
        if stored is not None and stored.is_pooled:
            # Tokens are not even looked up.
            return ModelInputs(
                inputs=None, hidden=stored.pooled(rows), num_blocks=stored.num_blocks
            )
        augment = None
        if augmentation is not None:
            augment = augmenter(augmentation, seed=key[0], epoch=key[1])
        inputs = self.maker.make(rows, augment)
        return ModelInputs(
            inputs=inputs,
            hidden=None if stored is None else stored.take(rows, inputs),
            num_blocks=0 if stored is None else stored.num_blocks,
        )

    @contextmanager
    def scores(self, made: ModelInputs) -> Iterator[Tensor]:
        """Compute scores; the backward pass belongs inside the block.

        Args:
            made: What `model_inputs` made of B rows.

        Yields:
            Scores, shape (B, num_labels).
        """
        with self.view.scores(made.inputs, made.hidden, made.num_blocks) as scores:  # type: ignore[arg-type]
            yield scores

    def all_scores(self, batch_size: int) -> npt.NDArray[np.float32]:
        """Compute the scores of all rows, in batches of similar length.

        Args:
            batch_size: Rows at once.

        Returns:
            Scores in the order of the rows, shape (num_rows, num_labels).
        """
        return self.scores_of(np.arange(len(self.maker.split)), batch_size)

    @torch.inference_mode()
    def scores_of(self, rows: npt.NDArray[np.int64], batch_size: int) -> npt.NDArray[np.float32]:
        """Compute the scores of some rows, in batches of similar length.

        Args:
            rows: Row numbers, shape (num_rows,).
            batch_size: Rows at once.

        Returns:
            Scores in the order of `rows`, shape (num_rows, num_labels).
        """
        order, parts = [], []
        # Equal lengths leave rows in their order.
        lengths = self.maker.split.lengths[rows] if self.is_sorted else np.ones_like(rows)
        with training_products(self.precision, self.maker.device):
            for places in eval_batches(lengths, batch_size):
                with self.scores(self.model_inputs(rows[places], None, (0, 0))) as scores:
                    parts.append(scores.float())  # fetched together: a GPU would be waited for
                order.append(places)
        if not parts:
            raise ValueError("A split to score needs at least one row.")
        part: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        found = np.empty_like(part)
        found[np.concatenate(order)] = part
        return found
