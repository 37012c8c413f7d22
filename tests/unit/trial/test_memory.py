"""Peaks are measured from the last reset; every kind of out-of-memory error is recognised."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from automl_ft.models.weights import map_weights
from automl_ft.trial import memory
from automl_ft.trial.memory import (
    is_out_of_memory,
    peak_memory_mib,
    reset_peak_memory,
    taken_memory_mib,
    used_memory_mib,
)

CPU = torch.device("cpu")


def test_the_peak_holds_what_was_allocated_and_freed() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_mib(CPU)
    block = np.ones(8 * 1024 * 1024)  # 64 MiB, touched
    del block
    assert 40 < peak_memory_mib(CPU) - before < 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak")
def test_a_reset_forgets_the_peak() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this kernel keeps no clear_refs")
    block = np.ones(8 * 1024 * 1024)
    del block
    peak = peak_memory_mib(CPU)
    reset_peak_memory(CPU)
    assert peak_memory_mib(CPU) < peak - 20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 10 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "python", "mps", "cpu", "cublas"],
)
def test_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("a")],
    ids=["runtime", "value", "key"],
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_the_cpu_allocators_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


class NoProc:
    """Stands for `Path` where there is no /proc."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read_text(self, encoding: str) -> str:
        raise FileNotFoundError(self.path)

    def write_text(self, text: str, encoding: str) -> int:
        raise PermissionError(self.path)


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1024 * 1024), ("linux", 1024)])
def test_without_proc_the_peak_is_the_process_lifetimes(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    usage = type("Usage", (), {"ru_maxrss": 300 * unit})
    monkeypatch.setattr(memory, "Path", NoProc)
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: usage)
    reset_peak_memory(CPU)  # cannot, and says nothing
    assert peak_memory_mib(CPU) == 300


def test_what_a_cpu_process_took_is_its_resident_peak() -> None:
    reset_peak_memory(CPU)
    assert taken_memory_mib(CPU) == pytest.approx(peak_memory_mib(CPU), abs=50)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells pages of files apart")
def test_pages_of_mapped_weights_are_as_good_as_free(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(64, 2**18)}, file)
    before = used_memory_mib(CPU)
    weights = map_weights([file])
    assert weights.size_mib == 64
    assert float(weights.tensors["weight"].sum()) == 0  # every page is touched
    assert used_memory_mib(CPU) > before + 50
    assert used_memory_mib(CPU, weights.size_mib) == pytest.approx(before, abs=10)
    assert used_memory_mib(CPU, 1e9) > 0, "no more than there are pages of files"
