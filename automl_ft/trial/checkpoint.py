"""How is a half-done trial written, so that it goes on as if nothing had happened?

`last.pt` holds everything that the next step depends on and is replaced atomically at every
validation; `best.safetensors` and `validation_logits.npy` hold the best validated
model. The best files are written first: a kill between the two repeats the steps since the older
`last.pt`, which writes the same best again.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from automl_ft.files.atomic import atomic_path, write_bytes
from automl_ft.specs.layout import BEST, LAST, LOGITS

__all__ = ["BEST", "LAST", "LOGITS", "FORMAT_VERSION", "load_last", "save_best", "save_last"]

FORMAT_VERSION = 1
"""Version of `last.pt`; a file of another version is not resumed."""


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint to go on from, atomically.

    Args:
        folder: The trial's folder; made if absent.
        state: Tensors, numbers, strings and plain containers of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / LAST) as temporary:
        torch.save({"version": FORMAT_VERSION, **state}, temporary)


def load_last(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the checkpoint to go on from.

    Args:
        folder: The trial's folder.
        device: Where its tensors go; random states stay on the CPU.

    Returns:
        What `save_last` was given; None if there is none, or it is of another version or torn.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, pickle.UnpicklingError):
        return None
    if not isinstance(state, dict) or state.get("version") != FORMAT_VERSION:
        return None
    parameters = {name: value.to(device) for name, value in state["parameters"].items()}
    return {**state, "parameters": parameters}


def save_best(
    folder: Path,
    parameters: dict[str, Tensor],
    logits: npt.NDArray[np.float32],
) -> None:
    """Write the best validated model so far, each file atomically.

    Args:
        folder: The trial's folder; made if absent.
        parameters: Parameters by name that training may have changed.
        logits: Its scores on the validation split, shape (num_rows, num_labels).
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
    with atomic_path(folder / BEST) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    buffer = io.BytesIO()
    np.save(buffer, logits.astype(np.float32))
    write_bytes(folder / LOGITS, buffer.getvalue())
