"""How many tokens may a row have, so that tokenizer and model can take it?"""

from __future__ import annotations

from transformers import PreTrainedModel

__all__ = ["longest_row"]

_MOST = 100_000


def longest_row(tokenizer_limit: int, model: PreTrainedModel) -> int:
    """Return the tokens that both the tokenizer and the position embeddings take.

    RoBERTa's position ids start after the padding index, so the positions up to it are unusable.

    Args:
        tokenizer_limit: The tokenizer's `model_max_length`.
        model: The model.

    Returns:
        Tokens with special ones; at most 100,000 where the model sets no bound.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return min(tokenizer_limit, _MOST)
    embeddings = [m for n, m in model.named_modules() if n.endswith("position_embeddings")]
    padding = [getattr(module, "padding_idx", None) for module in embeddings]
    unusable = max((index + 1 for index in padding if index is not None), default=0)
    return min(tokenizer_limit, positions - unusable)
