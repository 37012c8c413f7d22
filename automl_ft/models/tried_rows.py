"""On which rows is it tried whether a shortcut gives a model's scores?

Short ones, made to tell positions and tokens apart, and one that is longer than what a config says
of how far attention sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["long_rows", "short_rows"]

_LENGTHS = (7, 3, 1, 5)
"""Tokens of the rows that are tried: none a multiple of the others but for the one of a single
token, the longest first. The last one holds the same token everywhere, as what a head reads could
be looked for by its token."""
_BESIDES = 3
"""Tokens of the row that stands beside one that is longer than a window."""
_WINDOW = re.compile("window(?!.*layer)|local_att|chunk|block_size|radius")
"""How transformers' configs call what keeps attention near: `sliding_window`, `local_attention`,
`attention_window`, `attention_chunk_size`, `block_size`, `local_radius`. One too many only costs
time."""
_LONGEST = 512
"""Tokens of tried rows, at most, where nobody says how long rows will be."""


def short_rows(model: PreTrainedModel) -> list[Tensor]:
    """Return a row with the model's special tokens, some others, and one of equal tokens.

    Args:
        model: The model.

    Returns:
        Token ids of each row, shape (tokens,), int64; the longest row first.
    """
    rows = _rows(model, _LENGTHS)
    special = _special_tokens(model.config.get_text_config())[: len(rows[0]) - 1]
    rows[0][1 : 1 + len(special)] = torch.tensor(special, dtype=torch.int64)
    rows[-1] = rows[-1][:1].expand(len(rows[-1]))
    return rows


def _special_tokens(config: PretrainedConfig) -> list[int]:
    """Return the tokens that a config names, but padding: ESM's embedding counts mask tokens."""
    found = {
        value
        for name, value in config.to_dict().items()
        if name.endswith("_token_id") and type(value) is int
    }
    padding, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", 0)
    return sorted(token for token in found if 0 <= token < size and token != padding)


def long_rows(model: PreTrainedModel, longest: int | None) -> list[Tensor]:
    """Return a row that is longer than the windows it can exceed, and another.

    Args:
        model: The model.
        longest: Tokens of the longest rows that it will see; None where nobody says.

    Returns:
        Token ids of each row, shape (tokens,), int64; none where the config names no window, or
        none that its rows can exceed.
    """
    config = model.config.get_text_config()
    if longest is None:
        positions = getattr(config, "max_position_embeddings", None)
        longest = min(positions, _LONGEST) if isinstance(positions, int) else _LONGEST
    windows = [window for window in _windows(config) if window < longest]
    if not windows:
        return []
    # Some way beyond the window, so that many a pair of tokens is too far apart.
    length = max(windows) + max(8, max(windows) // 8)
    return _rows(model, (min(length, longest), _BESIDES))


def _windows(config: PretrainedConfig) -> list[int]:
    """Return what a config says of how far attention sees, in tokens."""
    found: list[int] = []
    for name, value in config.to_dict().items():
        if _WINDOW.search(name):
            values = value if isinstance(value, (list, tuple)) else [value]
            found += [size for size in values if type(size) is int and size > 0]
    return found


def _rows(model: PreTrainedModel, lengths: Sequence[int]) -> list[Tensor]:
    """Return rows of tokens that are no padding."""
    config = model.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)
    size = min(getattr(config, "vocab_size", 128), 4096)
    tokens = [token for token in range(size) if token != padding]
    draws = np.random.default_rng(0)
    return [torch.from_numpy(draws.choice(tokens, length)) for length in lengths]
