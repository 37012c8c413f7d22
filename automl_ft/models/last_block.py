"""How is the top block computed only for the position that the head reads?

Keys and values are needed for every token; queries, the output of attention and the feed-forward
part only for one token of each row. The result is the same. It needs the inside of a block, so it
is there for the two layouts of BERT's family only; other blocks are computed in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from automl_ft.models.packed import attend
from automl_ft.models.packing import Packing

__all__ = ["ReadBlock", "read_block"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadBlock:
    """A post-norm block whose attention and feed-forward part can be called apart."""

    query: nn.Module
    """Linear layer of the queries."""
    key: nn.Module
    """Linear layer of the keys."""
    value: nn.Module
    """Linear layer of the values."""
    num_heads: int
    """Attention heads."""
    attention_dropout: nn.Module
    """Its `p` is the dropout of the attention weights."""
    finish: Callable[[Tensor, Tensor], Tensor]
    """From the attended values and the block's input, both (B, 1, width), to its output."""

    def forward(self, hidden: Tensor, packing: Packing, read: Tensor) -> Tensor:
        """Compute the block's output at one position of each row.

        Args:
            hidden: Input of the block, shape (1, T, width).
            packing: Where rows lie.
            read: The token of each row, shape (B,).

        Returns:
            Shape (B, 1, width).
        """
        tokens = hidden[0]
        residual = tokens.index_select(0, read)
        query = self._heads(self.query(residual)[:, None])
        key = self._heads(packing.pad(self.key(tokens)))
        value = self._heads(packing.pad(self.value(tokens)))
        is_training = self.attention_dropout.training
        attended = attend(
            query,
            key,
            value,
            packing.whole.bias(is_causal=False, window=None, dtype=query.dtype),
            scaling=query.shape[3] ** -0.5,
            dropout=float(getattr(self.attention_dropout, "p", 0.0)) if is_training else 0.0,
        )
        return self.finish(attended.transpose(1, 2).flatten(2), residual[:, None])

    def _heads(self, states: Tensor) -> Tensor:
        """Turn (B, S, width) into (B, heads, S, head_dim)."""
        rows, length, _ = states.shape
        return states.view(rows, length, self.num_heads, -1).transpose(1, 2)


def read_block(block: nn.Module) -> ReadBlock | None:
    """Look into a block.

    Args:
        block: The top block of a model.

    Returns:
        Its parts, or None if it has neither of the known layouts.
    """
    try:
        return _bert(block) or _distilbert(block)
    except AttributeError:
        return None


def _bert(block: Any) -> ReadBlock | None:
    """BERT, RoBERTa, XLM-RoBERTa, ELECTRA and what was modelled on them."""
    if not hasattr(block, "feed_forward_chunk"):
        return None
    attention, feed_forward = block.attention, block.feed_forward_chunk
    inner = attention.self
    return ReadBlock(
        query=inner.query,
        key=inner.key,
        value=inner.value,
        num_heads=inner.num_attention_heads,
        attention_dropout=inner.dropout,
        finish=lambda attended, residual: feed_forward(attention.output(attended, residual)),
    )


def _distilbert(block: Any) -> ReadBlock | None:
    attention = block.attention
    if not hasattr(attention, "q_lin"):
        return None

    def finish(attended: Tensor, residual: Tensor) -> Tensor:
        hidden = block.sa_layer_norm(attention.out_lin(attended) + residual)
        output: Tensor = block.output_layer_norm(block.ffn(hidden) + hidden)
        return output

    return ReadBlock(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        num_heads=attention.n_heads,
        attention_dropout=attention.dropout,
        finish=finish,
    )
