"""How many floating-point operations does fine-tuning need, on real tokens only?

A multiplication and an addition count as two. For T tokens through P weights of matrices: 2 P T
forward, twice that backward. Attention of one row of L tokens and width H: 4 L^2 H forward for
scores and mix, twice that backward. Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1, and
Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B: 6 N + 12 L H Q T a token. Embedding
rows, norms, activations, softmax, dropout and the optimiser count as nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from automl_ft.models.load import LoadedModel

__all__ = ["Shape", "epoch_flops", "needed_flops", "shape_of"]

_KEY_OR_VALUE = re.compile(r"\b(key|value|k_lin|v_lin|k_proj|v_proj)\b")
_QUERY = re.compile(r"\b(query|q_lin|q_proj)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What of a model decides the count."""

    num_layers: int
    """Blocks."""
    block: int
    """Weights of the matrices of one block."""
    key_value: int
    """Those of them that make keys and values."""
    width: int
    """Width of attention: heads times their size."""
    per_row: int
    """Weights of matrices applied to one position of a row: pooler and head."""
    linear_shapes: tuple[tuple[int, int], ...]
    """Output and input width of each different matrix of a block."""


def shape_of(loaded: LoadedModel) -> Shape:
    """Read a model's shape.

    Args:
        loaded: An encoder whose blocks are alike.

    Returns:
        Its shape.
    """
    parameters = dict(loaded.model.named_parameters())
    layers = loaded.layer_map
    block = {n: parameters[n] for n in layers.blocks[-1] if parameters[n].dim() == 2}
    rest = [parameters[n] for n in (*layers.after, *layers.head) if parameters[n].dim() == 2]
    queries = [p.shape[0] for name, p in block.items() if _QUERY.search(name)]
    return Shape(
        num_layers=layers.num_layers,
        block=_weights(list(block.values())),
        key_value=_weights([p for name, p in block.items() if _KEY_OR_VALUE.search(name)]),
        width=queries[0] if queries else int(loaded.model.config.hidden_size),
        per_row=_weights(rest),
        linear_shapes=tuple(sorted({(p.shape[0], p.shape[1]) for p in block.values()})),
    )


def epoch_flops(shape: Shape, lengths: npt.NDArray[np.int64]) -> float:
    """Count what one epoch of full fine-tuning is, computed plainly.

    Args:
        shape: The model's.
        lengths: Tokens of each row, shape (num_rows,).

    Returns:
        Operations, forward and backward.
    """
    return _rows(shape, lengths) + shape.num_layers * _block(shape, lengths)


def needed_flops(shape: Shape, lengths: npt.NDArray[np.int64]) -> float:
    """Count what of an epoch must be computed, if the head reads a single position.

    The last block then needs keys and values of all tokens, and the rest for one token a row.

    Args:
        shape: The model's.
        lengths: Tokens of each row, shape (num_rows,).

    Returns:
        Operations, forward and backward.
    """
    tokens, num_rows = float(lengths.sum()), len(lengths)
    last = 6 * shape.key_value * tokens + 6 * (shape.block - shape.key_value) * num_rows
    last += 12 * shape.width * tokens
    return _rows(shape, lengths) + (shape.num_layers - 1) * _block(shape, lengths) + last


def _rows(shape: Shape, lengths: npt.NDArray[np.int64]) -> float:
    return 6.0 * shape.per_row * len(lengths)


def _block(shape: Shape, lengths: npt.NDArray[np.int64]) -> float:
    squares = float((lengths.astype(np.float64) ** 2).sum())
    return 6.0 * shape.block * float(lengths.sum()) + 12.0 * shape.width * squares


def _weights(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
