"""How often is a model validated, so that validation takes a small share of a trial?

The number holds for a whole study, because trials are compared at equal steps: it follows from
facts of the study alone and is stored with them. A number below 1 is one validation in several
epochs.
"""

from __future__ import annotations

from automl_ft.specs.facts import StudyFacts

__all__ = [
    "IN_DOUBT",
    "LEAST_IN_DOUBT",
    "assumed_cost",
    "choose_validations_per_epoch",
    "epochs_between_validations",
    "first_validation_step",
    "resolved_validations",
    "stored_setting",
    "written_validations",
]

_MOST = 2.0
"""What `auto` takes where validation is cheap; more looks cost more than they tell a pruner."""
_LARGEST_SHARE = 0.15
_TRAINING_COST = 3.0
IN_DOUBT, LEAST_IN_DOUBT = 0.1, 16
"""Share of the rows that are scored in fp32 after bf16, as it is expected of a trial, and how many
are at least (see `trial.screening`). Measured with MiniLM, four epochs: 0.03 on SST-2, 0.06 on
TREC-6, 0.1 on 20 classes of Banking77, 0.2 on the bundled docstrings."""
_GAINS = {"cpu": {"bf16": 4.5}, "cuda": {"bf16": 16.0, "tf32": 8.0}}
"""What is multiplied faster than in fp32: on a CPU with bf16 as measured (2.2 and 4.5 on two
machines), on a GPU at the most (312 and 156 to 19.5 TFLOP/s, data sheet of NVIDIA's A100, 2021).
"""


def assumed_cost(device: str, precision: str, num_rows: int) -> float:
    """Return what a token costs in validation, for each unit that it costs in training.

    A validation costs one forward pass, training three for each token: the backward pass computes
    two products for each of the forward pass (Kaplan et al. 2020, arXiv 2001.08361, section 2.1:
    2N and 4N operations a token). After bf16 a few rows are scored once more in fp32
    (`trial.screening`), and after TF32 all are scored in fp32 alone.

    Args:
        device: Such as `cpu` or `cuda:0`.
        precision: In which training computes: `fp32`, `tf32` or `bf16`.
        num_rows: Validation rows, 1 or more.

    Returns:
        A third for fp32, more for the others.
    """
    gain = _GAINS.get(device.split(":")[0], {}).get(precision, 1.0)
    if precision == "bf16":
        in_doubt = min(1.0, max(IN_DOUBT, LEAST_IN_DOUBT / max(1, num_rows)))
        return (1.0 + in_doubt * gain) / _TRAINING_COST
    return gain / _TRAINING_COST


def choose_validations_per_epoch(
    train_tokens: int, validation_tokens: int, *, cost: float
) -> float:
    """Choose how often a model is validated: what `training.validations_per_epoch: auto` comes to.

    For `k` validations an epoch the share of a long full fine-tuning trial is
    `k * cost * validation / (k * cost * validation + training)`, where the optimiser takes no time.
    The end of a trial that is shorter than the time between two validations is validated too; its
    share is larger, as it is where most blocks are frozen and rows are scored in fp32 after bf16.
    What the share was is stored with each trial.

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
