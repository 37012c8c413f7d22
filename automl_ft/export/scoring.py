"""Which scores does a model give to texts, with nothing but transformers?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["logits_of_texts"]


@torch.inference_mode()
def logits_of_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    *,
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Score texts in batches of similar length, the longest first.

    Args:
        model: A sequence classifier; left in eval mode.
        tokenizer: Its tokenizer; texts are cut to its `model_max_length`.
        texts: One or two texts for each row, the same number for all.
        batch_size: Rows at once, from 1 up.

    Returns:
        Scores before softmax in the order of the rows, shape (num_rows, num_labels).
    """
    model.eval()  # type: ignore[no-untyped-call]
    scores = np.zeros((len(texts), len(model.config.id2label or ())), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda row: -sum(map(len, texts[row])))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = _encode(tokenizer, [texts[row] for row in rows]).to(model.device)
        scores[rows] = model(**inputs).logits.float().cpu().numpy()
    return scores


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]) -> BatchEncoding:
    """Tokenize and pad; a text without any token becomes an unknown one, as in training."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, return_attention_mask=True)
    candidates = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    placeholder = next((token for token in candidates if token is not None), 0)
    for row, ids in enumerate(encoded["input_ids"]):
        if not ids:
            fillers = {"input_ids": placeholder, "attention_mask": 1}
            for key in encoded:
                encoded[key][row] = [fillers.get(key, 0)]
    return tokenizer.pad(encoded, return_tensors="pt")
