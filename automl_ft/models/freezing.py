"""What of a model is trainable, at each moment of a trial, under each freezing strategy.

The parts of a layer map run from the bottom (embeddings) to the top (head), and what is frozen is
always the parts below some level. Frozen means: no gradient, and eval mode, hence no dropout. That
is what makes the activations of a frozen prefix cacheable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from automl_ft.errors import ModelError, did_you_mean
from automl_ft.models.layer_map import LayerMap
from automl_ft.specs.hyperparameters import FREEZING_STRATEGIES
from automl_ft.specs.trial import ParamValue

__all__ = ["FreezingPlan", "plan_freezing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezingPlan:
    """Which parts are frozen in each stage of a trial.

    Only `gradual_unfreezing` has more than one stage. Stages only ever unfreeze.
    """

    layer_map: LayerMap
    """The parts of the model."""
    strategy: str
    """One of `FREEZING_STRATEGIES`."""
    frozen_layers: int = 0
    """Blocks frozen from the bottom, with `bottom_layers`."""
    unfreezing_pace: float = 1.0
    """Progress in (0, 1] from which all is trainable, with `gradual_unfreezing`."""
    reinit_layers: int = 0
    """Top blocks that start from random weights and so are never frozen."""

    @property
    def num_stages(self) -> int:
        """Stages of a trial, 1 or more."""
        return self.layer_map.num_layers + 2 if self.strategy == "gradual_unfreezing" else 1

    def stage(self, progress: float) -> int:
        """Return the stage at a moment of a trial.

        Source: Howard & Ruder 2018 (ULMFiT), section 3.3, with the pace as a hyperparameter
        rather than one block per epoch.

        Args:
            progress: Fraction of the training examples already seen, in [0, 1].

        Returns:
            The stage, from 0 to `num_stages` - 1; the last one once `unfreezing_pace` is reached.
        """
        last = self.num_stages - 1
        if progress >= self.unfreezing_pace:
            return last
        # A share of 3/10 that arrives as 0.2999... belongs to the stage that starts at 3/10.
        return min(last, int(progress / self.unfreezing_pace * last + 1e-9))

    def share(self, stage: int) -> float:
        """Return how much of a trial a stage lasts.

        Args:
            stage: The stage, from 0.

        Returns:
            Fraction of the training examples, in [0, 1].
        """
        last = self.num_stages - 1
        if last == 0:
            return 1.0
        return 1 - self.unfreezing_pace if stage == last else self.unfreezing_pace / last

    def trainable(self, stage: int) -> frozenset[str]:
        """Return the parameters that are trainable in a stage.

        Args:
            stage: The stage, from 0.

        Returns:
            Parameter names; never empty.
        """
        parts = self.layer_map.parts[self._frozen_parts(stage) :]
        return frozenset(name for part in parts for name in part) - self.layer_map.constants

    def ever_trainable(self) -> frozenset[str]:
        """Return the parameters that are trainable in some stage: what an optimiser needs.

        Returns:
            Parameter names; those of the last stage.
        """
        return self.trainable(self.num_stages - 1)

    def frozen_prefix(self, stage: int) -> int | None:
        """Return how far the model computes the same for a row all through a stage.

        Args:
            stage: The stage, from 0.

        Returns:
            The number of bottom blocks that are frozen together with everything below them; 0 if
            that is the embeddings only, None if not even they are. Fewer where blocks run in turns.
        """
        frozen = self._frozen_parts(stage)
        if frozen == 0 or not self.layer_map.has_pretrained_embeddings:
            return None
        return max(depth for depth in self.layer_map.boundaries if depth < frozen)

    def apply(self, model: PreTrainedModel, stage: int) -> None:
        """Set which parameters get a gradient, in place; drop the gradients of frozen ones.

        Args:
            model: The model that the layer map was made of.
            stage: The stage, from 0.
        """
        trainable = self.trainable(stage)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
            if name not in trainable:
                parameter.grad = None

    def set_train_mode(self, model: PreTrainedModel, stage: int) -> None:
        """Put the trainable part in train mode and the frozen part in eval mode, in place.

        A module that runs both in the frozen and in the trainable part (XLNet applies one dropout
        to its input and its output) counts as frozen.

        Args:
            model: The model that the layer map was made of.
            stage: The stage, from 0.
        """
        parts = self.layer_map.modules[: self._frozen_parts(stage)]
        frozen = {name for part in parts for name in part}
        for name, module in model.named_modules():
            module.training = name not in frozen

    def _frozen_parts(self, stage: int) -> int:
        """Return how many parts are frozen, counted from the embeddings up."""
        num_layers = self.layer_map.num_layers
        frozen = {
            "none": 0,
            "embeddings": 1,
            "bottom_layers": 1 + self.frozen_layers,
            "head_only": num_layers + 2,
            "gradual_unfreezing": num_layers + 1 - stage,
        }[self.strategy]
        # Random weights must learn: a block that was re-initialised is never frozen.
        return min(frozen, 1 + num_layers - self.reinit_layers) if self.reinit_layers else frozen


def plan_freezing(layer_map: LayerMap, hyperparameters: Mapping[str, ParamValue]) -> FreezingPlan:
    """Build the plan of a trial.

    Args:
        layer_map: The parts of the model.
        hyperparameters: `freezing`, and what goes with it: `frozen_layers`, `unfreezing_pace`,
            `reinit_layers`.

    Returns:
        The plan.

    Raises:
        ModelError: A value does not fit the model.
    """
    strategy = str(hyperparameters["freezing"])
    if strategy not in FREEZING_STRATEGIES:
        raise ModelError(
            f"`freezing` is `{strategy}`; accepted: {', '.join(FREEZING_STRATEGIES)}."
            f" {did_you_mean(strategy, FREEZING_STRATEGIES)}"
        )
    plan = FreezingPlan(
        layer_map=layer_map,
        strategy=strategy,
        frozen_layers=int(hyperparameters.get("frozen_layers") or 0),
        unfreezing_pace=float(hyperparameters.get("unfreezing_pace") or 0.0),
        reinit_layers=int(hyperparameters.get("reinit_layers") or 0),
    )
    _check(plan)
    return plan


def _check(plan: FreezingPlan) -> None:
    num_layers = plan.layer_map.num_layers
    if plan.strategy == "bottom_layers" and num_layers == 1:
        raise ModelError(
            f"`freezing` is bottom_layers with `frozen_layers` {plan.frozen_layers}, but this model"
            " has a single block, so none can be frozen below another. Accepted are the other"
            " strategies; `head_only` freezes the block."
        )
    if plan.strategy == "bottom_layers" and not 1 <= plan.frozen_layers < num_layers:
        raise ModelError(
            f"`frozen_layers` is {plan.frozen_layers}, but with `freezing: bottom_layers` this"
            f" model of {num_layers} blocks accepts 1 to {num_layers - 1}. Set another number, or"
            " `freezing: head_only` to freeze all blocks."
        )
    if plan.strategy == "gradual_unfreezing" and not 0 < plan.unfreezing_pace <= 1:
        raise ModelError(
            f"`unfreezing_pace` is {plan.unfreezing_pace:g}; accepted is a fraction of training"
            " above 0 up to 1."
        )
    if not 0 <= plan.reinit_layers <= num_layers:
        raise ModelError(
            f"`reinit_layers` is {plan.reinit_layers}, but this model has {num_layers} blocks;"
            f" accepted: 0 to {num_layers}."
        )
