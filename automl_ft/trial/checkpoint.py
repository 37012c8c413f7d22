"""How is a half-done trial written, so that it goes on as if nothing had happened?

`last.pt` holds everything that the next step depends on and is replaced atomically at every
validation; `best.safetensors` and `validation_logits.npy` hold the best validated
model. The best files are written first: a kill between the two repeats the steps since the older
`last.pt`, which writes the same best again.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from automl_ft.errors import DiskError
from automl_ft.files.atomic import atomic_path
from automl_ft.specs.layout import BEST, LAST, LOGITS

__all__ = ["BEST", "LAST", "LOGITS", "FORMAT_VERSION", "load_last", "save_best", "save_last"]

FORMAT_VERSION = 2
"""Version of `last.pt`; a file of another version is not resumed."""
_FULL_BYTES = 4 * 1024 * 1024
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint to go on from, atomically.

    Args:
        folder: The trial's folder; made if absent.
        state: Tensors, numbers, strings and plain containers of them; `parameters` holds tensors
            by name.

    Raises:
        DiskError: The disk takes no more; an older checkpoint is unharmed.
    """
    # A tensor that is part of a larger one would be written with all of it.
    parameters = {
        name: value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
        for name, value in state["parameters"].items()
    }
    with _writing(folder / LAST) as temporary:
        torch.save({"version": FORMAT_VERSION, **state, "parameters": parameters}, temporary)


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

    Raises:
        DiskError: The disk takes no more; an older best model is unharmed.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
    with _writing(folder / BEST) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    with _writing(folder / LOGITS) as temporary, temporary.open("wb") as file:
        np.save(file, logits.astype(np.float32))


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Lend a temporary path, and tell a disk that takes no more from a fault of the trial."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            try:
                yield temporary
            except (RuntimeError, SafetensorError) as error:
                # torch and safetensors hide why a write failed; the disk still shows it, as the
                # torn file is not removed yet.
                if shutil.disk_usage(path.parent).free < _FULL_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        raise DiskError(
            f"The checkpoint `{path}` cannot be written: {error.strerror or error}. Make room or"
            " mend the disk, then run the same command again: the trial goes on from its last"
            " checkpoint."
        ) from error
