"""Where do the rows of a batch lie when their real tokens stand end to end?

Attention is the one part of a model that must know; it works on padded places. On a CPU these are
laid out in groups of rows of similar length, so that a long row does not make every other one as
long as itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Packing", "RowGroup", "filled_up", "pack", "padded_length", "to_device"]

_FEW_TOKENS, _ROUND_FEW_TO, _ROUND_MANY_TO = 512, 8, 32
"""Token counts are rounded up to a multiple, as oneDNN builds a kernel for each shape that it meets
(5 ms for all products of a block of MiniLM) and keeps a thousand of them. In few tokens filler
weighs more, and fewer shapes come up: multiples of 8 take 2 % less than multiples of 32 on 400."""
_PAD_TO = 8
"""Where attention needs padded rows their length is rounded up, for aligned matmuls."""
_TOKEN_SHAPES, _LENGTH_SHAPES = 8, 2
"""Counts of tokens and lengths between a power of two and the next, where shapes are to be few: on
average 6 % filler, and a fifth more places in attention."""
_GROUP_COSTS = 4096
"""What one more group costs, in pairs of places that attention works on: its operators took
0.15 to 0.25 ms a block, in which time 2,000 to 6,000 pairs are worked off (MiniLM, one and two
threads of a CPU with bf16); with 2,048 or 8,192 steps are no faster."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowGroup:
    """Rows that attention pads to one length; G rows, S places each."""

    num_rows: int
    """G."""
    longest: int
    """S: tokens of the longest of them, rounded up."""
    valid: Tensor
    """Which places hold tokens, shape (G, S), bool."""
    biases: dict[Any, Tensor]
    """Attention biases made so far, by kind."""

    @property
    def num_places(self) -> int:
        """Padded places of the group."""
        return self.num_rows * self.longest

    def bias(self, *, is_causal: bool, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return what is added to attention scores.

        Args:
            is_causal: Whether tokens see only earlier ones.
            window: Tokens see only others less than this far away, the meaning of `sliding_window`
                in transformers' attention interface; None for all.
            dtype: Type of the scores.

        Returns:
            Zeros and very negative numbers, shape (G, 1, 1, S) or (G, 1, S, S).
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

    def bias_of_heads(self, num_heads: int, **kind: Any) -> Tensor:
        """Return what is added to the scores of every head.

        Args:
            num_heads: Heads of each row.
            **kind: As for `bias`.

        Returns:
            What `bias` returns for each head, shape (G * num_heads, 1, S) or
            (G * num_heads, S, S); one tensor for all blocks.
        """
        key = (num_heads, *kind.items())
        if key not in self.biases:
            bias = self.bias(**kind).expand(-1, num_heads, -1, -1)
            self.biases[key] = bias.flatten(0, 1)
        return self.biases[key]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packing:
    """Where the rows of a packed batch lie; B rows, T tokens with filler, P padded places."""

    whole: RowGroup
    """All rows in their order, padded to the longest."""
    num_tokens: int
    """T: all tokens and the filler that rounds them up."""
    positions: Tensor
    """Position of each token in its row, shape (T,), 0 for filler."""
    starts: Tensor
    """First token of each row, shape (B,)."""
    ends: Tensor
    """Last token of each row, shape (B,)."""
    padded_from: Tensor
    """For each place of the whole batch its token, shape (B * S,); any where there is none."""
    groups: tuple[RowGroup, ...]
    """The rows as attention works on them, in an order of its own; often only `whole`."""
    places_from: Tensor
    """For each place of the groups, one after the other, its token, shape (P,); any where there is
    none."""
    packed_from: Tensor
    """For each token its place in the groups, shape (T,); 0 for filler."""
    num_real: int
    """Tokens without the filler, which comes last."""
    is_filler: Tensor | None = None
    """Which tokens are filler, shape (T,), bool, where shapes are few: no number of a batch is then
    among what its kernels are launched with. None where `num_real` tells."""
    head_places: dict[int, Any] = field(default_factory=dict)
    """By number of heads where these lie in the groups, as `models.row_attention` finds it."""

    @property
    def num_rows(self) -> int:
        """B."""
        return self.whole.num_rows

    def pad(self, tokens: Tensor) -> Tensor:
        """Lay tokens out as a padded batch.

        Args:
            tokens: Shape (T, width).

        Returns:
            Shape (B, S, width); padding holds copies of some token.
        """
        padded = tokens.index_select(0, self.padded_from)
        return padded.view(self.num_rows, self.whole.longest, tokens.shape[1])

    def spread(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Lay tokens out as the groups.

        Args:
            tokens: Shape (T, width).

        Returns:
            For each group (G, S, width); padding holds copies of some token.
        """
        places: Tensor = _Spread.apply(  # type: ignore[no-untyped-call]
            tokens,
            self.places_from,
            self.packed_from,
            self.num_real if self.is_filler is None else self.is_filler,
        )
        parts = torch.split_with_sizes(places, [group.num_places for group in self.groups])
        return tuple(
            part.view(group.num_rows, group.longest, tokens.shape[1])
            for part, group in zip(parts, self.groups, strict=True)
        )

    def gather(self, parts: list[Tensor]) -> Tensor:
        """Lay the groups out as tokens.

        Args:
            parts: For each group (G, S, width).

        Returns:
            Shape (T, width); filler holds a copy of some token.
        """
        flat = [part.reshape(-1, part.shape[2]) for part in parts]
        places = flat[0] if len(flat) == 1 else torch.cat(flat)
        valid = [group.valid.flatten() for group in self.groups]
        is_token = valid[0] if len(valid) == 1 else torch.cat(valid)
        found: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            places, self.packed_from, self.places_from, is_token
        )
        return found


def pack(
    lengths: npt.NDArray[np.int64], device: torch.device, *, in_few_shapes: bool = False
) -> Packing:
    """Lay out rows of given lengths.

    Args:
        lengths: Tokens of each row, 1 or more, shape (B,).
        device: Where the indices go.
        in_few_shapes: Whether tokens and places are filled up so far that most batches of as many
            rows have one of a few shapes.

    Returns:
        The layout.
    """
    total = int(lengths.sum())
    num_tokens = filled_up(total, in_few_shapes=in_few_shapes)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    positions = np.zeros(num_tokens, dtype=np.int64)
    positions[:total] = np.arange(total) - np.repeat(starts, lengths)

    def place(array: npt.NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(array), device)

    every = np.arange(len(lengths))
    # On other devices the operators of one more group cost more than the places that it saves.
    is_split = device.type == "cpu" and not in_few_shapes
    chosen = _similar(lengths) if is_split else [every]

    def longest_of(rows: npt.NDArray[np.int64]) -> int:
        return padded_length(int(lengths[rows].max()), in_few_shapes=in_few_shapes)

    whole_length, longest = longest_of(every), [longest_of(rows) for rows in chosen]
    whole = _group(lengths, whole_length, place)
    padded_from = place(_tokens_of(starts, lengths, [every], [whole_length]))
    groups: tuple[RowGroup, ...] = (whole,)
    places_from = padded_from
    if len(chosen) > 1:
        groups = tuple(
            _group(lengths[rows], length, place)
            for rows, length in zip(chosen, longest, strict=True)
        )
        places_from = place(_tokens_of(starts, lengths, chosen, longest))
    packed_from = np.zeros(num_tokens, dtype=np.int64)
    packed_from[:total] = _places_of(lengths, chosen, longest, total)
    return Packing(
        whole=whole,
        num_tokens=num_tokens,
        positions=place(positions),
        starts=place(starts.astype(np.int64)),
        ends=place((starts + lengths - 1).astype(np.int64)),
        padded_from=padded_from,
        groups=groups,
        places_from=places_from,
        packed_from=place(packed_from),
        num_real=total,
        is_filler=place(np.arange(num_tokens) >= total) if in_few_shapes else None,
    )


class _Spread(torch.autograd.Function):
    """`index_select` whose gradient is one too.

    Each token has one place of its own; other places that hold a copy of it are padding, to which
    attention gives weight 0 and so no gradient. Torch would add all of them up, in an order that
    takes a sort on a GPU that must be deterministic.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, places_from: Tensor, packed_from: Tensor, filler: int | Tensor
    ) -> Tensor:
        """`filler`: which tokens are, shape (T,), or the first of them."""
        is_filler = filler if isinstance(filler, Tensor) else None
        ctx.save_for_backward(packed_from, is_filler)
        ctx.first_filler = None if isinstance(filler, Tensor) else filler
        return tokens.index_select(0, places_from)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        packed_from, is_filler = ctx.saved_tensors
        found = gradients[0].index_select(0, packed_from)
        if is_filler is None:
            found[ctx.first_filler :].zero_()
        else:
            found.masked_fill_(is_filler[:, None], 0)
        return found, None, None, None


class _Gather(torch.autograd.Function):
    """The way back: places that are padding are read by no token."""

    @staticmethod
    def forward(
        ctx: Any, places: Tensor, packed_from: Tensor, places_from: Tensor, is_token: Tensor
    ) -> Tensor:
        ctx.save_for_backward(places_from, is_token)
        return places.index_select(0, packed_from)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        places_from, is_token = ctx.saved_tensors
        found = gradients[0].index_select(0, places_from)
        return found.masked_fill_(~is_token[:, None], 0), None, None, None


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


def filled_up(num_tokens: int, *, in_few_shapes: bool = False) -> int:
    """Return how many tokens a packed batch has with its filler.

    Args:
        num_tokens: Real ones.
        in_few_shapes: As in `pack`.

    Returns:
        As many or more.
    """
    if in_few_shapes:
        return _one_of_few(num_tokens, _TOKEN_SHAPES)
    multiple = _ROUND_FEW_TO if num_tokens <= _FEW_TOKENS else _ROUND_MANY_TO
    return math.ceil(num_tokens / multiple) * multiple


def padded_length(length: int, *, in_few_shapes: bool = False) -> int:
    """Return to how many places attention pads rows.

    Args:
        length: Tokens of the longest of them.
        in_few_shapes: As in `pack`.

    Returns:
        As many or more.
    """
    if in_few_shapes:
        return _one_of_few(length, _LENGTH_SHAPES)
    return math.ceil(length / _PAD_TO) * _PAD_TO


def _one_of_few(number: int, parts: int) -> int:
    """Round up to one of `parts` numbers between a power of two and the next, multiples of 8."""
    octave = 1 << (int(max(1, number - 1)).bit_length() - 1)
    step = max(_PAD_TO, octave // parts)
    return math.ceil(number / step) * step


def _group(
    lengths: npt.NDArray[np.int64], longest: int, place: Callable[[npt.NDArray[Any]], Tensor]
) -> RowGroup:
    valid = np.arange(longest)[None, :] < lengths[:, None]
    return RowGroup(num_rows=len(lengths), longest=longest, valid=place(valid), biases={})


def _tokens_of(
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    groups: Sequence[npt.NDArray[np.int64]],
    longest: Sequence[int],
) -> npt.NDArray[np.int64]:
    """Return for each place of some groups its token; the last of the row where there is none."""
    found = []
    for rows, length in zip(groups, longest, strict=True):
        places = np.arange(length)
        inside = np.minimum(places[None, :], lengths[rows][:, None] - 1)
        found.append((starts[rows][:, None] + inside).reshape(-1))
    return np.concatenate(found).astype(np.int64)


def _places_of(
    lengths: npt.NDArray[np.int64],
    groups: Sequence[npt.NDArray[np.int64]],
    longest: Sequence[int],
    total: int,
) -> npt.NDArray[np.int64]:
    """Return for each token its place in some groups, shape (total,)."""
    begins = np.empty(len(lengths), dtype=np.int64)
    begin = 0
    for rows, length in zip(groups, longest, strict=True):
        begins[rows] = begin + length * np.arange(len(rows))
        begin += length * len(rows)
    starts = np.cumsum(lengths) - lengths
    places: npt.NDArray[np.int64] = np.arange(total) + np.repeat(begins - starts, lengths)
    return places


def _similar(lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Divide rows into groups of similar length, at the least cost for attention.

    A group costs its rows times the square of its longest one, and `_GROUP_COSTS`. As the best
    groups are neighbours in the order of length, the best division of the shortest rows is found
    for ever more of them.

    Args:
        lengths: Tokens of each row, shape (B,).

    Returns:
        Row numbers of each group; rising in a single one.
    """
    order = np.argsort(lengths, kind="stable")
    padded = -(-lengths[order] // _PAD_TO) * _PAD_TO
    # Rows of one padded length stay together: `ends` are the places at which a group may end.
    ends = [*(np.flatnonzero(np.diff(padded)) + 1).tolist(), len(lengths)]
    squares = [int(padded[end - 1]) ** 2 for end in ends]
    begins = [0, *ends]
    costs, cuts = [0], [0]
    for last, square in enumerate(squares):
        options = [
            costs[first] + (ends[last] - begins[first]) * square + _GROUP_COSTS
            for first in range(last + 1)
        ]
        cuts.append(int(np.argmin(options)))
        costs.append(options[cuts[-1]])
    groups: list[npt.NDArray[np.int64]] = []
    stop = len(ends)
    while stop > 0:
        groups.insert(0, order[begins[cuts[stop]] : begins[stop]])
        stop = cuts[stop]
    return groups if len(groups) > 1 else [np.arange(len(lengths))]
