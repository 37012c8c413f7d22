"""How are a model's base and its classification head run apart?

The head is run by the architecture's own code too: the whole model is called on rows of one token
while its base hands over an output that was computed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from automl_ft.models.prefix import patched

__all__ = ["BaseOutput", "at_positions", "head_logits", "one_token_each"]


@dataclass
class BaseOutput(ModelOutput):
    """What a base hands to its head, with every field that some architecture's head looks at."""

    last_hidden_state: Tensor | None = None
    """States at the positions that are handed on, shape (batch, positions, width)."""
    pooler_output: Tensor | None = None
    """The pooled state, where the base pools, shape (batch, width)."""
    past_key_values: Any = None
    """Nothing: no generation here."""
    mems: Any = None
    """Nothing, likewise (XLNet)."""
    hidden_states: Any = None
    """Nothing: not asked for."""
    attentions: Any = None
    """Nothing, likewise."""


def head_logits(model: PreTrainedModel, output: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the scores that the head gives to an output of the base.

    Args:
        model: The model.
        output: What its base returned, or `at_positions` of it.
        inputs: What the model is called with: `input_ids`, and `attention_mask` where the output
            holds more than one position of a row.

    Returns:
        Scores, shape (batch, num_labels).
    """
    with patched(model.base_model, lambda *args, **kwargs: output):
        logits = model(**inputs).logits
    assert isinstance(logits, Tensor)
    return logits


def at_positions(output: Any, hidden: Tensor) -> BaseOutput:
    """Return an output of the base that holds other hidden states.

    Args:
        output: What the base returned.
        hidden: Instead of its `last_hidden_state`.

    Returns:
        An output with these states; `pooler_output` is kept, all else is dropped.
    """
    pooled = getattr(output, "pooler_output", None)
    return BaseOutput(last_hidden_state=hidden, pooler_output=pooled)


def one_token_each(
    num_rows: int, pad_token_id: int | None, device: torch.device
) -> dict[str, Tensor]:
    """Return rows of one token that is no padding, which stand for rows already computed.

    Args:
        num_rows: Rows.
        pad_token_id: The model's padding.
        device: Where they go.

    Returns:
        `input_ids` and `attention_mask`, shape (num_rows, 1), int64. Without a mask transformers
        looks for padding in the ids, which a GPU would have to be waited for.
    """
    token = 1 if pad_token_id == 0 else 0
    ids = torch.full((num_rows, 1), token, dtype=torch.int64, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
