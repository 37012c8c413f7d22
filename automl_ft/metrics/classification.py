"""How good are predicted classes? scikit-learn's metrics under our keys.

All metrics are higher-is-better but `loss`. A class that is neither present nor predicted counts
as F1 0, as scikit-learn's `zero_division=0` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["classification_metrics", "cross_entropy", "objective_value"]


def classification_metrics(
    targets: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    labels: Sequence[str],
    positive_label: str | None = None,
) -> dict[str, float]:
    """Compute every metric of a classification.

    Args:
        targets: Class ids, shape (num_rows,), in [0, num_labels).
        logits: Scores before softmax, shape (num_rows, num_labels).
        labels: Class names by id.
        positive_label: The class that `f1_binary` is about; None leaves the metric out.

    Returns:
        `accuracy`, `mcc` (in [-1, 1]), `loss` (mean cross-entropy in nats), `precision_X`,
        `recall_X` and `f1_X` for X in macro, micro, weighted and, with `positive_label`, binary;
        and `precision/LABEL`, `recall/LABEL`, `f1/LABEL` for each class; all others in [0, 1].

    Raises:
        ValueError: There are no rows.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    if len(targets) == 0:
        raise ValueError("Metrics need at least one row.")
    predictions = logits.argmax(axis=1)
    metrics = {
        "accuracy": float(accuracy_score(targets, predictions)),
        # Not scikit-learn's, which warns where there is a single class.
        "mcc": objective_value("mcc", targets, predictions, len(labels)),
        "loss": cross_entropy(targets, logits),
    }
    ids = list(range(len(labels)))
    names = ("precision", "recall", "f1")
    for average in ("macro", "micro", "weighted"):
        scores = precision_recall_fscore_support(
            targets, predictions, labels=ids, average=average, zero_division=0
        )
        metrics.update(
            {f"{name}_{average}": float(s) for name, s in zip(names, scores, strict=False)}
        )
    by_class = precision_recall_fscore_support(
        targets, predictions, labels=ids, average=None, zero_division=0
    )
    for name, scores in zip(names, by_class, strict=False):
        metrics.update(
            {f"{name}/{label}": float(s) for label, s in zip(labels, scores, strict=True)}
        )
    if positive_label is not None:
        metrics.update({f"{name}_binary": metrics[f"{name}/{positive_label}"] for name in names})
    return metrics


def cross_entropy(targets: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> float:
    """Return the mean cross-entropy.

    Args:
        targets: Class ids, shape (num_rows,).
        logits: Scores before softmax, shape (num_rows, num_labels).

    Returns:
        Nats per row; NaN where the logits hold NaN or plus infinity.
    """
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a diverged model is a result, not a warning
        shifted = wide - wide.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_total - shifted[np.arange(len(targets)), targets]))


def objective_value(
    objective: str,
    targets: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64],
    num_labels: int,
    positive_id: int | None = None,
) -> float:
    """Compute one objective from a confusion matrix; fast enough for a bootstrap.

    Args:
        objective: One of `config.study.OBJECTIVES`.
        targets: Class ids, shape (num_rows,).
        predictions: Class ids, shape (num_rows,).
        num_labels: Number of classes.
        positive_id: The class of `f1_binary`.

    Returns:
        The same value as `classification_metrics` gives under that name.

    Raises:
        ValueError: There are no rows, the objective is unknown, or `f1_binary` lacks its class.
    """
    if len(targets) == 0:
        raise ValueError("Metrics need at least one row.")
    counts = np.bincount(targets * num_labels + predictions, minlength=num_labels**2)
    confusion = counts.reshape(num_labels, num_labels).astype(np.float64)
    hits, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    total = confusion.sum()
    if objective in ("accuracy", "f1_micro"):
        return float(hits.sum() / total)
    if objective == "mcc":
        return _mcc(hits.sum(), true, predicted, total)
    both = true + predicted
    f1 = np.divide(2 * hits, both, out=np.zeros(num_labels), where=both > 0)
    if objective == "f1_macro":
        return float(f1.mean())
    if objective == "f1_weighted":
        return float((f1 * true).sum() / total)
    if objective == "f1_binary" and positive_id is not None:
        return float(f1[positive_id])
    raise ValueError(f"`{objective}` is no objective that can be computed here.")


def _mcc(
    num_hits: float,
    true: npt.NDArray[np.float64],
    predicted: npt.NDArray[np.float64],
    total: float,
) -> float:
    """Multi-class Matthews correlation (Gorodkin 2004, equation 8)."""
    covariance = num_hits * total - (true * predicted).sum()
    # One root of the product, not two: a perfect prediction is then exactly 1.
    spread = np.sqrt((total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum()))
    return float(covariance / spread) if spread > 0 else 0.0
