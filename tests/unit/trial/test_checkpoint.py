"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from automl_ft.errors import DiskError
from automl_ft.trial.checkpoint import BEST, LAST, LOGITS, load_last, save_best, save_last

CPU = torch.device("cpu")


@pytest.fixture
def state() -> dict[str, Any]:
    return {
        "parameters": {"a.weight": torch.randn(3, 4), "b": torch.zeros(1)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        "random": {"python": (3, (1, 2, 3), None)},
        "state": {"epoch": 1, "evaluations": []},
    }


def test_what_was_saved_is_loaded(tmp_path: Path, state: dict[str, Any]) -> None:
    save_last(tmp_path / "new" / "folder", state)
    loaded = load_last(tmp_path / "new" / "folder", CPU)
    assert loaded is not None
    assert torch.equal(loaded["parameters"]["a.weight"], state["parameters"]["a.weight"])
    assert loaded["optimizer"] == state["optimizer"]
    assert loaded["random"] == state["random"]
    assert loaded["state"] == state["state"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_last(tmp_path, CPU) is None
    assert load_last(tmp_path / "missing", CPU) is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_file_is_none(tmp_path: Path, state: dict[str, Any], share: float) -> None:
    save_last(tmp_path, state)
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(whole[: int(len(whole) * share)])
    assert load_last(tmp_path, CPU) is None


@pytest.mark.parametrize(
    "content",
    [b"garbage" * 100, b"\x80", b"\0" * 5000, b"plain text\n", b"PK\x03\x04"],
    ids=["garbage", "a byte", "zeros", "text", "zip"],
)
def test_a_file_of_something_else_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LAST).write_bytes(content)
    assert load_last(tmp_path, CPU) is None


@pytest.mark.parametrize("content", [{"version": 0}, {"no": "version"}, [1, 2]])
def test_a_file_of_another_version_is_none(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / LAST)
    assert load_last(tmp_path, CPU) is None


def test_a_file_that_would_run_code_is_none(tmp_path: Path) -> None:
    torch.save({"version": 1, "parameters": {}, "path": tmp_path}, tmp_path / LAST)
    assert load_last(tmp_path, CPU) is None


def test_a_failed_write_leaves_the_older_checkpoint(tmp_path: Path, state: dict[str, Any]) -> None:
    save_last(tmp_path, state)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_last(tmp_path, {**state, "state": lambda: None})
    loaded = load_last(tmp_path, CPU)
    assert loaded is not None
    assert loaded["state"] == state["state"]
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_the_best_model_is_written_with_its_scores(tmp_path: Path) -> None:
    parameters = {"head.weight": torch.randn(3, 4).T, "head.bias": torch.ones(2)}
    logits = np.random.default_rng(0).normal(size=(5, 3))
    save_best(tmp_path / "trial", parameters, logits)
    saved = load_file(tmp_path / "trial" / BEST)
    assert saved.keys() == parameters.keys()
    assert all(torch.equal(saved[name], parameters[name]) for name in parameters)
    scores = np.load(tmp_path / "trial" / LOGITS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, logits, rtol=1e-6)


def test_parameters_that_share_memory_with_others_are_written(tmp_path: Path) -> None:
    whole = torch.randn(4, 4)
    save_best(tmp_path, {"part": whole[:2]}, np.zeros((1, 2), dtype=np.float32))
    assert torch.equal(load_file(tmp_path / BEST)["part"], whole[:2])


@pytest.mark.parametrize("write", ["last", "best"])
def test_a_full_disk_is_told_from_a_fault_of_the_trial(tmp_path, monkeypatch, write) -> None:
    """torch and safetensors say `RuntimeError`; what tells is how much room the disk has."""
    weights = {"part": torch.zeros(3)}
    logits = np.zeros((1, 2), dtype=np.float32)

    def save() -> None:
        if write == "last":
            save_last(tmp_path / "trial", {"parameters": weights})
        else:
            save_best(tmp_path / "trial", weights, logits)

    def torn(data, path, **options):
        raise RuntimeError("unexpected pos 64 vs 0")

    name = "torch.save" if write == "last" else "automl_ft.trial.checkpoint.save_file"
    monkeypatch.setattr(name, torn)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        save()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r"cannot be written: No space left.*Make room"):
        save()
    assert list((tmp_path / "trial").iterdir()) == []


def test_a_disk_that_is_read_only_is_no_fault_of_the_trial(tmp_path, monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskError, match="Read-only file system"):
        save_last(tmp_path / "trial", {"parameters": {}})


def test_a_part_of_a_larger_tensor_is_written_alone(tmp_path):
    whole = torch.arange(100_000.0).view(100, 1000)
    save_last(tmp_path, {"parameters": {"weight": whole[3]}})
    assert (tmp_path / LAST).stat().st_size < 10_000
    loaded = load_last(tmp_path, torch.device("cpu"))["parameters"]["weight"]
    assert torch.equal(loaded, whole[3])
