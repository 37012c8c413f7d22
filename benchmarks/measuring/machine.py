"""On what was it measured: machine, device, versions?"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_machine"]

_PACKAGES = ("torch", "transformers", "accelerate", "optuna", "numpy")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""CPU features that decide how fast matrices are multiplied."""


def describe_machine(device: str) -> dict[str, Any]:
    """Describe what figures hold for.

    Args:
        device: The torch device of the measurement.

    Returns:
        Plain values for the line of JSON.
    """
    from automl_ft.version import __version__

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_features": _cpu_features(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "device": _device_name(device),
        "versions": {
            "automl-ft": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def _cpu_info(key: str) -> str:
    """Return a value of /proc/cpuinfo, or nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    found = set((_cpu_info("flags") or _cpu_info("Features")).split())
    return [flag for flag in _FLAGS if flag in found]
