"""A device that was lost is told from one that works, and nobody who cleans up hides the reason."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from automl_ft.trial.device import empty_cache, is_lost
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import release

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")
ASSERT = RuntimeError("CUDA error: device-side assert triggered")
FULL = torch.OutOfMemoryError("CUDA out of memory.")


class Gpu:
    """Answers every call as a GPU does that has met an error; None for none."""

    def __init__(self, error: Exception | None, cleaning: Exception | None = None) -> None:
        self.error, self.cleaning = error, cleaning
        self.asked: list[torch.device] = []

    def synchronize(self, device: torch.device) -> None:
        self.asked.append(device)
        if self.error is not None:
            raise self.error

    def empty_cache(self) -> None:
        error = self.error or self.cleaning
        if error is not None:
            raise error


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a GPU in place."""

    def put(gpu: Gpu) -> Gpu:
        monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
        monkeypatch.setattr(torch.cuda, "empty_cache", gpu.empty_cache)
        return gpu

    return put


@pytest.mark.parametrize(("error", "expected"), [(None, False), (ASSERT, True), (FULL, False)])
def test_a_gpu_is_lost_where_even_waiting_for_it_fails(use, error, expected: bool) -> None:
    gpu = use(Gpu(error))
    assert is_lost(CUDA) is expected
    assert gpu.asked == [CUDA]


def test_a_cpu_is_never_lost_nor_asked(use) -> None:
    gpu = use(Gpu(ASSERT))
    assert not is_lost(CPU)
    empty_cache(CPU)
    assert gpu.asked == []


def test_cleaning_up_after_a_trial_is_silent_on_a_lost_gpu(use, study: PreparedStudy) -> None:
    use(Gpu(ASSERT))
    release(dataclasses.replace(study, device=CUDA))


def test_cleaning_up_that_fails_on_a_gpu_that_works_is_told(use) -> None:
    use(Gpu(None, cleaning=RuntimeError("no such call")))
    with pytest.raises(RuntimeError, match="no such call"):
        empty_cache(CUDA)
