"""Live bytes are those of the tensors that exist, each storage once."""

from __future__ import annotations

import torch
from torch import nn

from automl_ft.trial.allocations import recorded_allocations

KIB = 1024


def test_new_tensors_count_until_they_are_gone() -> None:
    with recorded_allocations([]) as live:
        first = torch.zeros(256)
        second = torch.zeros(512)
        del first
        third = torch.zeros(256)
        del second
        fourth = third + 1
        del fourth
    assert live == [KIB, 3 * KIB, 3 * KIB, 2 * KIB]


def test_views_and_changes_in_place_count_nothing() -> None:
    with recorded_allocations([]) as live:
        values = torch.zeros(256)
        values.view(16, 16).add_(1)
    assert set(live) == {KIB}


def test_what_was_held_before_counts_nothing() -> None:
    held = torch.zeros(256)
    with recorded_allocations([held]) as live:
        held.view(16, 16).mul_(2)
        more = held[:128] * 2
    assert (live[0], live[-1]) == (0, more.nbytes)


def test_the_backward_pass_counts_too() -> None:
    layer, rows = nn.Linear(64, 64, bias=False), torch.ones(8, 64)
    with recorded_allocations([layer.weight, rows]) as live:
        layer(rows).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.nbytes <= live[-1] < layer.weight.grad.nbytes + KIB


def test_what_is_kept_for_the_backward_pass_lives_until_then() -> None:
    values = torch.ones(256, requires_grad=True)
    with recorded_allocations([values]) as live:
        loss = values.exp().exp().sum()
        forward = len(live)
        loss.backward()
        del loss
    assert live[forward - 1] == 2 * KIB + 4
    assert live[-1] < max(live)


def test_it_counts_where_no_gradients_are_kept() -> None:
    with torch.inference_mode(), recorded_allocations([]) as live:
        torch.zeros(256).exp().exp()
    assert max(live) == 2 * KIB
