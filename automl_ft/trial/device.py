"""Can this process still use its device after an error?

An illegal address or a failed assertion in a kernel is the last that a process hears of its GPU:
every later call fails with the same error, whoever makes it, until the process ends
(https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html, cudaErrorIllegalAddress).
So the device is asked; torch's messages and classes differ by version.
"""

from __future__ import annotations

import torch

from automl_ft.trial.memory import is_out_of_memory

__all__ = ["DeviceLostError", "empty_cache", "is_lost"]


class DeviceLostError(Exception):
    """The device does nothing more for this process; another one can go on with it."""


def is_lost(device: torch.device) -> bool:
    """Tell whether a device does nothing more for this process; waits for what it is doing.

    Args:
        device: Where trials run.

    Returns:
        Whether every later call would fail; never of a device that is no GPU.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


def empty_cache(device: torch.device) -> None:
    """Give back what torch keeps of a device's memory; of one that is lost it cannot.

    Args:
        device: Where trials run.

    Raises:
        RuntimeError: It failed though the device is there.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.empty_cache()
    except RuntimeError:
        # Whoever cleans up after a trial must not hide what the trial itself said.
        if not is_lost(device):
            raise
