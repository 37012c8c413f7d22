"""How does a model run over the real tokens of a batch, end to end, without padding?

The rows of a batch are laid one after the other as a single row of `num_tokens` tokens, so that
every layer that works token by token (linear layers, norms, activations) does no work for padding.
Only attention must know where rows end; it is given to the model as an attention implementation of
its own, through the interface that transformers offers for that, so that the code of the
architecture stays in charge of everything else. Which models allow it is left to
`models.capabilities`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from automl_ft.models.dropout import DropoutStream
from automl_ft.models.packing import Packing
from automl_ft.models.row_attention import attend_rows, head_places

__all__ = [
    "IMPLEMENTATION",
    "attend",
    "attention_over",
    "use_packed_attention",
]

IMPLEMENTATION = "automl_ft_packed"
"""Name of the attention implementation; without a packing it does what `sdpa` does."""
_REFUSED = ("softcap", "s_aux", "head_mask")
"""Arguments of transformers' attention interface that change scores: Gemma-2 caps them, GPT-OSS
has attention sinks."""
_LONGEST_EAGER = 256
"""On a CPU, attention without dropout over longer rows is left to torch's own kernel, which
does not build the matrix of weights."""


@dataclass(kw_only=True, slots=True)
class _Active:
    """What the attention implementation works with now."""

    packing: Packing | None = None
    dropout: DropoutStream | None = None
    by_rows: bool = True


# NOTE: a plain global, not a context variable: autograd runs the recomputation of gradient
# checkpointing in threads of its own, which would not see one. A process trains one batch at a
# time.
_ACTIVE = _Active()


@contextmanager
def attention_over(
    packing: Packing, dropout: DropoutStream | None, *, by_rows: bool = True
) -> Iterator[None]:
    """Have packed attention work on a batch.

    Args:
        packing: Its layout.
        dropout: Where attention masks come from; None for torch's own generator.
        by_rows: Whether `models.row_attention` computes it where it can.
    """
    before = _ACTIVE.packing, _ACTIVE.dropout, _ACTIVE.by_rows
    _ACTIVE.packing, _ACTIVE.dropout, _ACTIVE.by_rows = packing, dropout, by_rows
    try:
        yield
    finally:
        _ACTIVE.packing, _ACTIVE.dropout, _ACTIVE.by_rows = before


def use_packed_attention(model: PreTrainedModel) -> None:
    """Give a model the packed attention; outside `attention_over` it computes as before.

    Args:
        model: The model, changed in place.

    Raises:
        ValueError: The architecture takes no attention implementation from outside.
    """
    model.set_attn_implementation(IMPLEMENTATION)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, scaling: float, dropout: float
) -> Tensor:
    """Compute softmax attention over a padded batch (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: Shape (B, heads, L, head_dim).
        key: Shape (B, heads, S, head_dim).
        value: Shape (B, heads, S, width), often of the same width.
        bias: Added to the scores, shape (B, 1, 1, S) or (B, 1, L, S).
        scaling: Factor on the scores.
        dropout: Probability with which a weight is dropped, in [0, 1).

    Returns:
        Shape (B, heads, L, width).
    """
    is_eager = query.device.type == "cpu" and (dropout > 0 or key.shape[2] <= _LONGEST_EAGER)
    if not is_eager:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
    # For short rows two matmuls and a softmax are faster than torch's kernel on a CPU, which
    # builds the weights in any case where there is dropout (measured 1.1x a step). Scaling and
    # bias ride on the first matmul, whose cost they hardly change (by themselves they took longer
    # than it). The softmax runs in fp32: a sum, and faster there than in bf16.
    rows, heads = query.shape[:2]
    scores = torch.baddbmm(
        bias.expand(rows, heads, -1, -1).flatten(0, 1),
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        alpha=scaling,
    )
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if dropout > 0:
        weights = _drop(weights, dropout)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, -1, value.shape[3])


def _drop(weights: Tensor, p: float) -> Tensor:
    if _ACTIVE.dropout is None:
        return functional.dropout(weights, p)
    return _ACTIVE.dropout.drop(weights, p)


def _mask(shape: torch.Size, dtype: torch.dtype, *, p: float) -> Tensor:
    """Draw the mask that `_drop` would draw for weights of a shape and type, on the CPU."""
    if _ACTIVE.dropout is None:
        return functional.dropout(torch.ones(shape, dtype=dtype), p)
    return _ACTIVE.dropout.mask(shape, p, dtype)


def _packed_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend within rows; the signature is that of transformers' attention interface."""
    packing = _ACTIVE.packing
    if packing is None:
        plain: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, weights = plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output, weights
    if asked := [name for name in _REFUSED if kwargs.get(name) is not None]:
        # On the few short rows that are tried, these may change scores too little to be noticed.
        raise ValueError(f"Packed attention does not compute `{asked[0]}`.")
    kind: dict[str, Any] = {
        "is_causal": bool(kwargs.get("is_causal", getattr(module, "is_causal", False))),
        "window": kwargs.get("sliding_window"),
        "dtype": query.dtype,
    }
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    states = query, key, value
    if _goes_by_rows(packing, states, dropout):
        return _by_rows(packing, states, kind, scaling=scale, dropout=dropout), None
    repeats = query.shape[1] // key.shape[1]
    spread = (
        _spread_heads(query, packing),
        _spread_heads(key, packing, repeats),
        _spread_heads(value, packing, repeats),
    )
    outputs = []
    for group, parts in zip(packing.groups, zip(*spread, strict=True), strict=True):
        output = attend(*parts, group.bias(**kind), scaling=scale, dropout=dropout)
        outputs.append(output.transpose(1, 2).flatten(2))
    heads, width = query.shape[1], value.shape[3]
    return packing.gather(outputs).view(1, -1, heads, width), None


def _goes_by_rows(packing: Packing, states: tuple[Tensor, Tensor, Tensor], dropout: float) -> bool:
    """Tell whether `models.row_attention` computes a batch.

    It needs as many heads of keys as of queries, of one width; where `attend` would leave a group
    to torch's kernel, all are left to `attend`.
    """
    query, key, value = states
    if not _ACTIVE.by_rows or query.device.type != "cpu":
        return False
    is_eager = dropout > 0 or max(group.longest for group in packing.groups) <= _LONGEST_EAGER
    return is_eager and query.shape == key.shape == value.shape and packing.is_filler is None


def _by_rows(
    packing: Packing,
    states: tuple[Tensor, Tensor, Tensor],
    kind: dict[str, Any],
    *,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attend by `models.row_attention`; from (1, heads, T, head_dim) to (1, T, heads, head_dim)."""
    _, heads, tokens, width = states[0].shape
    query, key, value = (s.transpose(1, 2).reshape(tokens, heads * width) for s in states)
    found = attend_rows(
        (query, key, value),
        head_places(packing, heads),
        biases=[group.bias_of_heads(heads, **kind) for group in packing.groups],
        scaling=scaling,
        draw=partial(_mask, p=dropout) if dropout > 0 else None,
    )
    return found.view(1, tokens, heads, width)


def _spread_heads(states: Tensor, packing: Packing, repeats: int = 1) -> list[Tensor]:
    """Turn (1, heads, T, head_dim) into (G, heads * repeats, S, head_dim) for each group."""
    heads, width = states.shape[1], states.shape[3]
    found = []
    for part in packing.spread(states.transpose(1, 2).squeeze(0).flatten(1)):
        split = part.view(*part.shape[:2], heads, width).transpose(1, 2)
        found.append(split.repeat_interleave(repeats, 1) if repeats > 1 else split)
    return found


def _packed_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Make no mask for packed rows: the layout says it all.

    For padded ones sdpa's is always made off the CPU, where a look at whether all places hold
    tokens, which could save it, would wait for the device.
    """
    if _ACTIVE.packing is not None:
        return None
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.device.type != "cpu":
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _packed_mask)
