"""What every test needs: no network, fixed seeds, few threads, a working directory of its own."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two threads of many tiny operations wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _own_place(tmp_path, monkeypatch):
    """No test reads or writes the user's database, cache or working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOML_FT_STORAGE", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def pytest_collection_modifyitems(items):
    """Skip GPU tests with a reason where there is no GPU."""
    # Not by keywords: they hold the names of folders too, and a checkout may lie in one named gpu.
    wanted = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
