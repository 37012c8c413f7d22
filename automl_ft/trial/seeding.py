"""How is everything random in a trial seeded, saved and restored?"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["random_states", "restore_random_states", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch.

    Args:
        seed: The trial's seed, 0 or more.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries may still use the global generator
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """Collect the states of all generators that training draws from.

    Args:
        device: Where the trial runs.

    Returns:
        Values that `torch.save` writes and `torch.load(weights_only=True)` reads.
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_states` collected.

    Args:
        states: The collected states.
        device: Where the trial runs; states of another device are left alone.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = states["numpy"]["state"]
    key = np.asarray(inner["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def _numpy_state() -> dict[str, Any]:
    """Return the state of NumPy's global generator, its array as a list."""
    state: dict[str, Any] = np.random.get_state(legacy=False)
    inner = state["state"]
    return {**state, "state": {**inner, "key": inner["key"].tolist()}}
