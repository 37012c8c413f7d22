"""How much each class counts in the loss where `data.class_weights` asks for balance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl_ft.data.table import IntArray

__all__ = ["balanced_class_weights"]


def balanced_class_weights(labels: IntArray, num_classes: int) -> NDArray[np.float64]:
    """Weigh classes by inverse frequency, so that the rows' mean weight is 1.

    Source: King & Zeng, Logistic Regression in Rare Events Data, 2001; scikit-learn's
    `compute_class_weight("balanced")`, which refuses classes without rows.

    Args:
        labels: Class ids of the training rows, shape (num_rows,).
        num_classes: Number of classes.

    Returns:
        Weights above 0 of shape (num_classes,); 0 for a class without training rows, whose
        weight no training row ever uses.
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    present = counts > 0
    weights = np.zeros(num_classes, dtype=np.float64)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights
