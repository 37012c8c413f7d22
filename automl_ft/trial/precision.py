"""Where does a trial run, and in which precision?"""

from __future__ import annotations

import contextlib
import platform

import torch

from automl_ft.errors import UsageError

__all__ = ["autocast", "describe_device", "pick_device", "resolve_precision"]


def pick_device(wanted: str) -> torch.device:
    """Turn `auto`, `cpu`, `mps`, `cuda` or `cuda:N` into a device that is there.

    Args:
        wanted: What the study asks for; `auto` takes cuda, else mps, else cpu.

    Returns:
        The device.

    Raises:
        UsageError: The device is not there.
    """
    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    device = torch.device(wanted)
    count = torch.cuda.device_count()
    missing_cuda = device.type == "cuda" and (device.index or 0) >= count
    if missing_cuda or (device.type == "mps" and not has_mps):
        there = ["cpu", *(["mps"] if has_mps else []), *(f"cuda:{i}" for i in range(count))]
        raise UsageError(
            f"device: `{wanted}` is not available on this machine; there is {', '.join(there)}."
            " Choose one of these or `auto`."
        )
    return device


def describe_device(device: torch.device) -> str:
    """Name the device and its hardware.

    Args:
        device: The device.

    Returns:
        Such as `cpu (x86_64)` or `cuda (NVIDIA H200)`.
    """
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()})"


def resolve_precision(setting: str, device: torch.device) -> str:
    """Choose the precision of the forward and backward pass.

    `auto` stays with fp32 on CPUs: eager bf16 autocast gains there only with matrix units and
    changes results; weights and reductions stay fp32 in every case.

    Args:
        setting: `auto`, `fp32` or `bf16`.
        device: Where the trial runs.

    Returns:
        `fp32` or `bf16`.
    """
    if setting != "auto":
        return setting
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which the forward pass runs.

    Args:
        precision: `fp32` or `bf16`.
        device: Where the trial runs.

    Returns:
        A context manager; does nothing for fp32.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
