"""Has a model an embedding for every token that its tokenizer gives it?

Tokens that were added to a tokenizer without the model being resized have none. A CPU finds out in
the first trial, with an error that names neither; a GPU fails an assertion in a kernel and can do
nothing more in that process.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automl_ft.errors import ModelError

__all__ = ["check_token_ids"]


def check_token_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    used: Iterable[npt.NDArray[np.integer]],
    checkpoint: str,
) -> None:
    """Refuse a tokenizer that knows tokens which its model does not, if rows hold them.

    Models that do not look ids up in an embedding (CANINE hashes characters) take any.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a padding token.
        used: Token ids of all rows, any shapes.
        checkpoint: The model as the user names it.

    Raises:
        ModelError: An id in the rows, or that of the padding token, is not below the number of the
            model's embeddings.
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return
    size = embedding.num_embeddings
    padding = int(getattr(tokenizer, "pad_token_id"))  # noqa: B009 - tokenizers are untyped
    beyond = {padding} if padding >= size else set()
    for ids in used:
        beyond.update(np.unique(ids[ids >= size]).tolist())
    if not beyond:
        return
    token = min(beyond)
    is_padding = " (its padding token)" if token == padding else ""
    others = f", and {len(beyond) - 1} others like it" if len(beyond) > 1 else ""
    raise ModelError(
        f"The tokenizer of the model `{checkpoint}` gives token"
        f" `{tokenizer.convert_ids_to_tokens(token)}`{is_padding} the id {token}{others}, but the"
        f" model has embeddings for ids 0 to {size - 1} only. Give the model more, once:"
        " `model.resize_token_embeddings(len(tokenizer))`, then save both; or use the tokenizer"
        " that it was trained with."
    )
