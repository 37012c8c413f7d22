"""Where does a trial run, and in which precision?"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from automl_ft.errors import UsageError

__all__ = [
    "describe_device",
    "num_sharing",
    "open_device",
    "pick_device",
    "resolve_precision",
    "training_products",
]


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


def open_device(wanted: str, slot: int = 0) -> torch.device:
    """Pick a device, and have this process train on it the way that trials do.

    On a GPU kernels are deterministic where there are such. The backward pass of attention over
    rows of several hundred tokens is not: torch's memory-efficient kernel is deterministic only in
    a mode that refuses every operator without a deterministic kernel. cuDNN's attention is left
    out: it builds a plan for every shape that it meets, and packed rows come in many.

    Args:
        wanted: As in `pick_device`.
        slot: The place of this process among the workers of a search, from 0: those that `auto` or
            `cuda` sends to GPUs take one after the other, and begin again at the first.

    Returns:
        The device; a GPU with its number.

    Raises:
        UsageError: The device is not there.
    """
    device = pick_device(wanted)
    if device.type == "cuda":
        if wanted in ("auto", "cuda"):
            device = torch.device("cuda", slot % torch.cuda.device_count())
        # Events, streams and statistics are those of the current device.
        torch.cuda.set_device(device.index)
        # cuBLAS is deterministic only with a fixed workspace, which it reads at its first product:
        # https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # It would also fill every tensor that is yet to be written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def num_sharing(wanted: str, device: torch.device, num_workers: int) -> int:
    """Count the workers of a search that train on one device.

    Args:
        wanted: What the study asks for.
        device: What `open_device` made of it for one of them.
        num_workers: All workers of the search; their slots are 0, 1, ...

    Returns:
        Those on the device: all of them, but where they are dealt out to several GPUs.
    """
    if device.type != "cuda" or wanted not in ("auto", "cuda"):
        return num_workers
    return len(range(device.index or 0, num_workers, torch.cuda.device_count()))


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

    `auto` takes bf16 where the hardware multiplies it faster than fp32: on GPUs that have it and
    on CPUs with AVX512-BF16 or AMX (measured 1.5x a step of all-MiniLM-L6 on two cores). The
    optimiser's weights and all reductions over rows stay fp32 in every case.

    Args:
        setting: `auto`, `fp32`, `tf32` or `bf16`.
        device: Where the trial runs.

    Returns:
        `fp32`, `tf32` or `bf16`.

    Raises:
        UsageError: The device has no such precision.
    """
    if setting == "tf32" and device.type != "cuda":
        raise UsageError(
            f"training.precision: `tf32` is there on NVIDIA GPUs only, but trials run on"
            f" `{device}`. Set it to fp32, bf16 or auto."
        )
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp32"
    return "bf16" if device.type == "cpu" and _has_fast_bf16() else "fp32"


@contextmanager
def training_products(precision: str, device: torch.device) -> Iterator[None]:
    """Multiply matrices as a precision says while the block is open; sums are fp32 in each.

    TF32 keeps fp32's range and 10 bits of its fraction in the factors; sums are fp32
    (NVIDIA A100 white paper, 2020, "TensorFloat-32").

    Args:
        precision: `tf32` shortens the factors; the others leave torch as it is.
        device: Where the trial runs.
    """
    if precision == "fp32" or device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.allow_tf32, products.allow_bf16_reduced_precision_reduction
    products.allow_tf32 = precision == "tf32"
    products.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        products.allow_tf32, products.allow_bf16_reduced_precision_reduction = before


def _has_fast_bf16() -> bool:
    has: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(has() or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
