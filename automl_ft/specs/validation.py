"""How often is a model validated, so that validation takes a small share of a trial?

The number holds for a whole study, because trials are compared at equal steps: it follows from
facts of the study alone and is stored with them. A number below 1 is one validation in several
epochs.
"""

from __future__ import annotations

from automl_ft.specs.facts import StudyFacts

__all__ = [
    "assumed_cost",
    "choose_validations_per_epoch",
    "epochs_between_validations",
    "first_validation_step",
    "is_dear",
    "may_matter",
    "resolved_validations",
    "stored_setting",
    "usual_cost",
    "written_validations",
]

_MOST = 2.0
"""What `auto` takes where validation is cheap; more looks cost more than they tell a pruner."""
_LARGEST_SHARE = 0.15
_TRAINING_COST = 3.0
_BF16_GAIN = 1.5
_GPU_GAINS = {"bf16": 8.0, "tf32": 4.0}
"""Half of what an NVIDIA A100 multiplies faster than in fp32 (312 and 156 to 19.5 TFLOP/s, its data
sheet of 2021)."""
_NOISE = 1.25
"""What is measured within this factor of the usual is taken for the usual, so that two studies of
the same rows on one machine validate alike."""
_DEAREST = 16 / _TRAINING_COST
"""The most that validation can cost: bf16 at a GPU's peak."""


def usual_cost(precision: str) -> float:
    """Return what a token costs in validation, for each unit that it costs in training.

    A validation costs one forward pass, training three for each token: the backward pass computes
    two products for each of the forward pass (Kaplan et al. 2020, arXiv 2001.08361, section 2.1:
    2N and 4N operations a token). Training in bf16 is 1.5 times as fast (measured at 1.47 for full
    fine-tuning on a CPU with bf16 matrix units), while validation stays in fp32. Measured on such
    a CPU (MiniLM, SST-2): 0.42 in bf16, 0.22 in fp32, so that this is on the safe side.

    Args:
        precision: In which training computes: `fp32`, `tf32` or `bf16`.

    Returns:
        A third, or half for bf16.
    """
    return (_BF16_GAIN if precision == "bf16" else 1.0) / _TRAINING_COST


def is_dear(cost: float, usual: float) -> bool:
    """Tell whether a measured cost is clearly above the usual one.

    Args:
        cost: Measured.
        usual: From `usual_cost`.

    Returns:
        Whether the measured one counts.
    """
    return cost > _NOISE * usual


def assumed_cost(device: str, precision: str, measured: float | None) -> float:
    """Return the cost that `auto` reckons with.

    Hardware with matrix units for bf16 or TF32 trains many times as fast as it validates in fp32,
    by how much depends on the model: what was measured counts where it is more than usual.

    Args:
        device: Such as `cpu` or `cuda:0`.
        precision: In which training computes: `fp32`, `tf32` or `bf16`.
        measured: Measured when the study was made; None where it was not.

    Returns:
        As `usual_cost`.
    """
    usual = usual_cost(precision)
    if measured is None:  # memory ran out, or the study is from before it was measured
        gain = _GPU_GAINS.get(precision, 1.0)
        return gain / _TRAINING_COST if device.startswith("cuda") else usual
    return measured if is_dear(measured, usual) else usual


def may_matter(train_tokens: int, validation_tokens: int, usual: float) -> bool:
    """Tell whether the cost can make a difference to `choose_validations_per_epoch`.

    Args:
        train_tokens: Tokens of the training rows, 1 or more.
        validation_tokens: Tokens of the validation rows.
        usual: From `usual_cost`.

    Returns:
        False where validation is so small that its cost never counts.
    """
    cheapest, dearest = (
        choose_validations_per_epoch(train_tokens, validation_tokens, cost=cost)
        for cost in (usual, _DEAREST)
    )
    return cheapest != dearest


def choose_validations_per_epoch(
    train_tokens: int, validation_tokens: int, *, cost: float
) -> float:
    """Choose how often a model is validated: what `training.validations_per_epoch: auto` comes to.

    For `k` validations an epoch the share of a long full fine-tuning trial is
    `k * cost * validation / (k * cost * validation + training)`. The end of a trial that is shorter
    than the time between two validations is validated too; its share is larger.

    Args:
        train_tokens: Tokens of the training rows, 1 or more.
        validation_tokens: Tokens of the validation rows.
        cost: What a token costs in validation, from `assumed_cost`.

    Returns:
        The largest of 2, 1, 1/2, 1/4, ... with which validation takes at most 15 %.
    """
    once, chosen = cost * validation_tokens, _MOST
    while chosen * once > _LARGEST_SHARE * (chosen * once + train_tokens):
        chosen /= 2
    return chosen


def resolved_validations(setting: int | str, facts: StudyFacts) -> float:
    """Return the validations in each epoch of a study.

    Args:
        setting: `training.validations_per_epoch`.
        facts: The study's facts, which hold what `auto` came to.

    Returns:
        1 to 50, or a fraction 1/m for one in m epochs.
    """
    return facts.validations_per_epoch if isinstance(setting, str) else float(setting)


def stored_setting(per_epoch: float) -> int | str:
    """Return the setting with which a study of such validations goes on.

    Args:
        per_epoch: From `resolved_validations`.

    Returns:
        A whole number, or `auto` for a fraction, which cannot be set.
    """
    return int(per_epoch) if per_epoch >= 1 else "auto"


def epochs_between_validations(per_epoch: float) -> int:
    """Return how many epochs end before one ends with a validation.

    Args:
        per_epoch: From `resolved_validations`.

    Returns:
        1 where every epoch does, else `m` for 1/m.
    """
    return 1 if per_epoch >= 1 else round(1 / per_epoch)


def first_validation_step(num_examples: int, per_epoch: float) -> int:
    """Return the training rows that a trial has seen at its first validation.

    Args:
        num_examples: Training rows.
        per_epoch: From `resolved_validations`.

    Returns:
        1 or more, rounded down, as validations round to the nearest row: at or below the first.
    """
    if per_epoch < 1:
        return num_examples * epochs_between_validations(per_epoch)
    return max(1, int(num_examples // per_epoch))


def written_validations(per_epoch: float) -> str:
    """Say how often a model is validated.

    Args:
        per_epoch: From `resolved_validations`.

    Returns:
        Such as `twice an epoch` or `every 4 epochs`.
    """
    if per_epoch < 1:
        return f"every {epochs_between_validations(per_epoch)} epochs"
    words = {1: "once", 2: "twice"}
    return f"{words.get(int(per_epoch), f'{int(per_epoch)} times')} an epoch"
