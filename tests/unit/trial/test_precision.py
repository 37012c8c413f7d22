"""Which device and which precision a trial runs in."""

from __future__ import annotations

import os

import pytest
import torch

from automl_ft.errors import UsageError
from automl_ft.trial.precision import (
    describe_device,
    num_sharing,
    open_device,
    pick_device,
    resolve_precision,
    training_products,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return a function that pretends which devices there are."""

    def pretend(*, num_cuda: int = 0, has_mps: bool = False, has_bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: has_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Fake")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)

    return pretend


def test_auto_takes_the_fastest_that_is_there(machine) -> None:
    machine(num_cuda=1, has_mps=True)
    assert pick_device("auto").type == "cuda"
    machine(has_mps=True)
    assert pick_device("auto").type == "mps"
    machine()
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize("wanted", ["cpu", "cuda", "cuda:1", "mps"])
def test_a_device_that_is_there_is_taken(machine, wanted: str) -> None:
    machine(num_cuda=2, has_mps=True)
    assert pick_device(wanted) == torch.device(wanted)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps"])
def test_a_missing_device_is_refused_with_what_is_there(machine, wanted: str) -> None:
    machine()
    with pytest.raises(UsageError, match=f"`{wanted}` is not available.*there is cpu. Choose"):
        pick_device(wanted)


def test_a_gpu_number_too_high_is_refused_with_those_there(machine) -> None:
    machine(num_cuda=2, has_mps=True)
    with pytest.raises(UsageError, match="there is cpu, mps, cuda:0, cuda:1"):
        pick_device("cuda:2")


def test_a_device_is_described_with_its_hardware(machine) -> None:
    machine(num_cuda=1)
    assert describe_device(CUDA) == "cuda (NVIDIA Fake)"
    assert describe_device(CPU).startswith("cpu (")


@pytest.mark.parametrize("setting", ["fp32", "bf16"])
def test_a_given_precision_is_taken(setting: str) -> None:
    assert resolve_precision(setting, CPU) == setting


def test_auto_is_bf16_on_a_gpu_that_has_it(machine) -> None:
    machine(num_cuda=1)
    assert resolve_precision("auto", CUDA) == "bf16"
    machine(num_cuda=1, has_bf16=False)
    assert resolve_precision("auto", CUDA) == "fp32"


def test_auto_is_fp32_on_mps(machine) -> None:
    machine(has_mps=True)
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("has_avx", "has_amx", "expected"),
    [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")],
)
def test_auto_is_bf16_on_a_cpu_that_multiplies_it_fast(
    monkeypatch: pytest.MonkeyPatch, has_avx: bool, has_amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert resolve_precision("auto", CPU) == expected


def test_tf32_is_refused_where_there_is_none() -> None:
    assert resolve_precision("tf32", CUDA) == "tf32"
    with pytest.raises(UsageError, match=r"`tf32` is there on NVIDIA GPUs only.*`cpu`. Set it to"):
        resolve_precision("tf32", CPU)


def test_tf32_shortens_the_factors_of_training_only() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    with training_products("tf32", CUDA):
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before
    for precision, device in (("fp32", CUDA), ("bf16", CUDA), ("fp32", CPU)):
        with training_products(precision, device):
            assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.fixture
def chosen(machine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three GPUs, and a list of those that are made the current one; torch's modes are put back."""
    numbers: list[int] = []
    machine(num_cuda=3)
    monkeypatch.setattr(torch.cuda, "set_device", numbers.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: None)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    return numbers


def test_a_gpu_is_made_the_current_one_and_deterministic(
    chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda mode, warn_only: told.append(("mode", mode))
    )
    monkeypatch.setattr(
        torch.backends.cuda, "enable_cudnn_sdp", lambda on: told.append(("cudnn", on))
    )
    assert open_device("cuda:1") == torch.device("cuda:1")
    assert open_device("cuda") == torch.device("cuda:0")
    assert chosen == [1, 0]
    assert told == [("mode", True), ("cudnn", False)] * 2
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_workers_take_the_gpus_in_turn(chosen: list[int], wanted: str) -> None:
    devices = [open_device(wanted, slot) for slot in range(5)]
    assert [device.index for device in devices] == chosen == [0, 1, 2, 0, 1]
    assert [num_sharing(wanted, device, 5) for device in devices] == [2, 2, 1, 2, 2]


def test_a_gpu_that_is_named_is_the_same_for_all_workers(chosen: list[int]) -> None:
    devices = [open_device("cuda:0", slot) for slot in range(4)]
    assert chosen == [0] * 4
    assert {num_sharing("cuda:0", device, 4) for device in devices} == {4}


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_all_workers_share_a_machine_without_gpus(machine, wanted: str) -> None:
    machine()
    assert open_device(wanted, 3) == CPU
    assert num_sharing(wanted, CPU, 4) == 4


def test_on_a_cpu_there_is_nothing_to_make_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert open_device("cpu") == torch.device("cpu")
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
