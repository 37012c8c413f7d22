"""Gradient checkpointing changes what is kept, never a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from automl_ft.models.checkpointing import disable_checkpointing, enable_checkpointing
from automl_ft.models.dropout import DropoutStream, use_stream

from .conftest import ARCHITECTURES

Gradients = dict[str, Tensor]


@pytest.fixture
def gradients(load: Callable[..., Any], batch: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a function that gives gradients and the bytes kept for the backward pass."""

    def compute(
        name: str, *, is_checkpointing: bool, has_stream: bool, num_frozen: int = 0
    ) -> tuple[Gradients, int]:
        loaded = load(name, "classifier", dropout=0.2)
        model, stream = loaded.model.train(), DropoutStream(5) if has_stream else None
        if stream is not None:
            use_stream(model, stream)
        if is_checkpointing:
            enable_checkpointing(model, loaded.layer_map, stream)
        for block in loaded.layer_map.block_modules[:num_frozen]:
            model.get_submodule(block).eval()
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(**batch).loss
        total = sum(kept.values())
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, total

    return compute


@pytest.mark.parametrize("has_stream", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_the_same_with_dropout(
    gradients: Callable[..., Any], name: str, has_stream: bool
) -> None:
    plain, kept = gradients(name, is_checkpointing=False, has_stream=has_stream)
    found, fewer = gradients(name, is_checkpointing=True, has_stream=has_stream)
    assert found.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    assert fewer < kept


def test_a_frozen_block_is_run_once(gradients: Callable[..., Any]) -> None:
    plain, _ = gradients("bert", is_checkpointing=False, has_stream=True, num_frozen=2)
    found, _ = gradients("bert", is_checkpointing=True, has_stream=True, num_frozen=2)
    assert all(torch.equal(found[key], gradient) for key, gradient in plain.items())


def test_what_is_enabled_can_be_disabled(load: Callable[..., Any], batch: Any) -> None:
    loaded = load("bert", "classifier", dropout=0.0)
    blocks = [loaded.model.get_submodule(name) for name in loaded.layer_map.block_modules]
    enable_checkpointing(loaded.model, loaded.layer_map, None)
    enable_checkpointing(loaded.model, loaded.layer_map, None)
    assert all("forward" in block.__dict__ for block in blocks)
    disable_checkpointing(loaded.model, loaded.layer_map)
    assert not any("forward" in block.__dict__ for block in blocks)
    disable_checkpointing(loaded.model, loaded.layer_map)


def test_packed_rows_have_the_same_gradients(
    fast: Callable[..., Any], pack_rows: Callable[..., Any], check_step: Callable[..., None]
) -> None:
    for name in ("bert", "albert", "modernbert"):
        fitted = fast(name)
        enable_checkpointing(fitted.model, fitted.loaded.layer_map, None)
        try:
            check_step(fitted.packed(), pack_rows(), name)
        finally:
            disable_checkpointing(fitted.model, fitted.loaded.layer_map)
