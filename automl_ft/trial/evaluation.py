"""What scores does a model give to a split?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from automl_ft.data.batches import Padding
from automl_ft.data.encoding import EncodedSplit
from automl_ft.trial.batches import evaluation_tensors

__all__ = ["predict_logits"]


@torch.inference_mode()
def predict_logits(
    model: nn.Module, split: EncodedSplit, padding: Padding, batch_size: int, device: torch.device
) -> npt.NDArray[np.float32]:
    """Run a model over a split, in batches of similar length.

    It runs in fp32 whatever precision the trial trains in: what is measured is what an exported
    model gives.

    Args:
        model: The model; left in eval mode.
        split: Encoded rows.
        padding: How rows are padded.
        batch_size: Rows at once.
        device: Where the model is.

    Returns:
        Scores in the order of the rows, shape (num_rows, num_labels).

    Raises:
        ValueError: The split is empty.
    """
    model.eval()
    scores: npt.NDArray[np.float32] | None = None
    for rows, inputs in evaluation_tensors(split, padding, batch_size, device):
        logits = model(**inputs).logits.float().cpu().numpy()
        if scores is None:
            scores = np.empty((len(split), logits.shape[1]), dtype=np.float32)
        scores[rows] = logits
    if scores is None:
        raise ValueError("A split to score needs at least one row.")
    return scores
