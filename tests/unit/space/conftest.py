"""Spaces that the tests of this layer share."""

from pathlib import Path

import pytest


@pytest.fixture
def conditional():
    """A space with a condition, a prior, every kind of parameter, and a bound that names a fact."""
    return {
        "freezing": {"choices": ["none", "bottom_layers", "head_only"], "default": "none"},
        "frozen_layers": {
            "low": 1,
            "high": "num_layers - 1",
            "default": "num_layers // 2",
            "when": {"freezing": "bottom_layers"},
        },
        "learning_rate": {
            "low": 1e-5,
            "high": 1e-2,
            "log": True,
            "prior": {
                "by": "freezing",
                "centers": {"none": 5e-5, "bottom_layers": 1e-4, "head_only": 3e-3},
                "spread": 10,
            },
        },
        "batch_size": {"choices": [8, 16, 32], "default": 16},
        "epochs": {"low": 1, "high": 4, "default": 3},
        "dropout": {"low": 0.0, "high": 0.4, "step": 0.1, "default": 0.1},
        "weight_decay": 0.01,
    }


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def write_file(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
