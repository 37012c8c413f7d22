"""How does a model run over the real tokens of a batch, end to end, without padding?

The rows of a batch are laid one after the other as a single row of `num_tokens` tokens, so that
every layer that works token by token (linear layers, norms, activations) does no work for padding.
Only attention must know where rows end; it is given to the model as an attention implementation of
its own, through the interface that transformers offers for that, so that the code of the
architecture stays in charge of everything else. Which models allow it is left to
`models.capabilities`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from automl_ft.models.dropout import DropoutStream

__all__ = [
    "IMPLEMENTATION",
    "Packing",
    "attend",
    "attention_over",
    "pack",
    "to_device",
    "use_packed_attention",
]

IMPLEMENTATION = "automl_ft_packed"
"""Name of the attention implementation; without a packing it does what `sdpa` does."""
_ROUND_TO = 32
"""Token counts are rounded up to a multiple: oneDNN builds a kernel for each shape that it meets
(measured: 50 % on top of a matmul at first sight)."""
_PAD_TO = 8
"""Where attention needs padded rows their length is rounded up, for aligned matmuls."""
_REFUSED = ("softcap", "s_aux", "head_mask")
"""Arguments of transformers' attention interface that change scores: Gemma-2 caps them, GPT-OSS
has attention sinks."""
_LONGEST_EAGER = 256
"""On a CPU, attention without dropout over longer rows is left to torch's own kernel, which
does not build the matrix of weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packing:
    """Where the rows of a packed batch lie; B rows, T tokens with filler, S the longest row."""

    num_rows: int
    """B."""
    longest: int
    """S: tokens of the longest row, rounded up."""
    num_tokens: int
    """T: all tokens and the filler that rounds them up."""
    positions: Tensor
    """Position of each token in its row, shape (T,), 0 for filler."""
    starts: Tensor
    """First token of each row, shape (B,)."""
    ends: Tensor
    """Last token of each row, shape (B,)."""
    padded_from: Tensor
    """For each place of a padded batch its token, shape (B * S,); any where there is none."""
    packed_from: Tensor
    """For each token its place in a padded batch, shape (T,); 0 for filler."""
    valid: Tensor
    """Which places of a padded batch hold tokens, shape (B, S), bool."""
    biases: dict[Any, Tensor]
    """Attention biases made so far, by kind."""

    def pad(self, tokens: Tensor) -> Tensor:
        """Lay tokens out as a padded batch.

        Args:
            tokens: Shape (T, width).

        Returns:
            Shape (B, S, width); padding holds copies of some token.
        """
        padded = tokens.index_select(0, self.padded_from)
        return padded.view(self.num_rows, self.longest, tokens.shape[1])

    def unpad(self, padded: Tensor) -> Tensor:
        """Lay a padded batch out as tokens.

        Args:
            padded: Shape (B, S, width).

        Returns:
            Shape (T, width); filler holds a copy of the first token.
        """
        return padded.reshape(-1, padded.shape[2]).index_select(0, self.packed_from)

    def bias(self, *, is_causal: bool, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return what is added to attention scores.

        Args:
            is_causal: Whether tokens see only earlier ones.
            window: Tokens see only others less than this far away, the meaning of `sliding_window`
                in transformers' attention interface; None for all.
            dtype: Type of the scores.

        Returns:
            Zeros and very negative numbers, shape (B, 1, 1, S) or (B, 1, S, S).
        """
        key = (is_causal, window, dtype)
        if key not in self.biases:
            allowed = self.valid[:, None, None, :]
            if is_causal or window is not None:
                places = torch.arange(self.longest, device=self.valid.device)
                distance = places[:, None] - places[None, :]
                if is_causal:
                    allowed = allowed & (distance >= 0)
                if window is not None:
                    # A padded place far from every token would see nothing and give NaN.
                    near = distance.abs() < window
                    allowed = (allowed & near) | ~self.valid[:, None, :, None]
            bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            self.biases[key] = bias.masked_fill_(~allowed, torch.finfo(dtype).min)
        return self.biases[key]


def pack(lengths: npt.NDArray[np.int64], device: torch.device) -> Packing:
    """Lay out rows of given lengths.

    Args:
        lengths: Tokens of each row, 1 or more, shape (B,).
        device: Where the indices go.

    Returns:
        The layout.
    """
    num_rows, total = len(lengths), int(lengths.sum())
    longest = math.ceil(int(lengths.max()) / _PAD_TO) * _PAD_TO
    num_tokens = math.ceil(total / _ROUND_TO) * _ROUND_TO
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    row_of = np.repeat(np.arange(num_rows), lengths)
    positions = np.zeros(num_tokens, dtype=np.int64)
    positions[:total] = np.arange(total) - starts[row_of]
    packed_from = np.zeros(num_tokens, dtype=np.int64)
    packed_from[:total] = row_of * longest + positions[:total]
    padded_from = np.zeros(num_rows * longest, dtype=np.int64)
    padded_from[packed_from[:total]] = np.arange(total)
    valid = np.arange(longest)[None, :] < lengths[:, None]

    def place(array: npt.NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(array), device)

    return Packing(
        num_rows=num_rows,
        longest=longest,
        num_tokens=num_tokens,
        positions=place(positions),
        starts=place(starts.astype(np.int64)),
        ends=place((starts + lengths - 1).astype(np.int64)),
        padded_from=place(padded_from),
        packed_from=place(packed_from),
        valid=place(valid),
        biases={},
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for it.

    Args:
        tensor: On the CPU.
        device: Where it goes.

    Returns:
        The tensor there; through pinned memory on CUDA, as only such copies are asynchronous.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(kw_only=True, slots=True)
class _Active:
    """What the attention implementation works with now."""

    packing: Packing | None = None
    dropout: DropoutStream | None = None


# NOTE: a plain global, not a context variable: autograd runs the recomputation of gradient
# checkpointing in threads of its own, which would not see one. A process trains one batch at a
# time.
_ACTIVE = _Active()


@contextmanager
def attention_over(packing: Packing, dropout: DropoutStream | None) -> Iterator[None]:
    """Have packed attention work on a batch.

    Args:
        packing: Its layout.
        dropout: Where attention masks come from; None for torch's own generator.
    """
    before = _ACTIVE.packing, _ACTIVE.dropout
    _ACTIVE.packing, _ACTIVE.dropout = packing, dropout
    try:
        yield
    finally:
        _ACTIVE.packing, _ACTIVE.dropout = before


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
        value: Shape (B, heads, S, head_dim).
        bias: Added to the scores, shape broadcastable to (B, heads, L, S).
        scaling: Factor on the scores.
        dropout: Probability with which a weight is dropped, in [0, 1).

    Returns:
        Shape (B, heads, L, head_dim).
    """
    is_eager = query.device.type == "cpu" and (dropout > 0 or key.shape[2] <= _LONGEST_EAGER)
    if not is_eager:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
    # For short rows two matmuls and a softmax are faster than torch's kernel on a CPU, which
    # builds the weights in any case where there is dropout (measured 1.1x a step). The softmax
    # runs in fp32: a sum, and faster there than in bf16.
    scores = torch.matmul(query * scaling, key.transpose(2, 3)) + bias
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if dropout > 0:
        weights = _drop(weights, dropout)
    return torch.matmul(weights, value)


def _drop(weights: Tensor, p: float) -> Tensor:
    if _ACTIVE.dropout is None:
        return functional.dropout(weights, p)
    return _ACTIVE.dropout.drop(weights, p)


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
    is_causal = bool(kwargs.get("is_causal", getattr(module, "is_causal", False)))
    bias = packing.bias(is_causal=is_causal, window=kwargs.get("sliding_window"), dtype=query.dtype)
    groups = query.shape[1] // key.shape[1]
    output = attend(
        _pad_heads(query, packing),
        _pad_heads(key, packing, groups),
        _pad_heads(value, packing, groups),
        bias,
        scaling=query.shape[3] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
    )
    heads, width = output.shape[1], output.shape[3]
    packed = packing.unpad(output.transpose(1, 2).flatten(2))
    return packed.view(1, -1, heads, width), None


def _pad_heads(states: Tensor, packing: Packing, groups: int = 1) -> Tensor:
    """Turn (1, heads, T, head_dim) into (B, heads * groups, S, head_dim)."""
    heads, width = states.shape[1], states.shape[3]
    padded = packing.pad(states.transpose(1, 2)[0].flatten(1))
    split = padded.view(packing.num_rows, packing.longest, heads, width).transpose(1, 2)
    return split.repeat_interleave(groups, 1) if groups > 1 else split


def _packed_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Make no mask for packed rows: the layout says it all."""
    return None if _ACTIVE.packing is not None else sdpa_mask(*args, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _packed_mask)
