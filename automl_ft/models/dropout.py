"""Which keys of a model's config are dropout probabilities, and how one value reaches them all.

Keys are read from the config itself rather than from a list of models. A head that its
architecture builds without dropout (most decoders) stays without.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

__all__ = ["apply_dropout", "dropout_overrides"]


def dropout_overrides(config: PretrainedConfig, value: float) -> dict[str, float]:
    """Give every dropout key of a config the same value.

    Layer dropping (`layerdrop`) and stochastic depth (`drop_path`) skip whole layers and are no
    dropout in this sense; they stay as they are. A key that holds None (`classifier_dropout` of
    BERT: as the hidden dropout) is set too.

    Args:
        config: The model's config.
        value: Dropout probability in [0, 1).

    Returns:
        The value for each dropout key, such as `hidden_dropout_prob`; may be empty.
    """
    plain = config.get_text_config().to_dict()
    return {key: float(value) for key, old in plain.items() if _is_dropout(key, old)}


def apply_dropout(config: PretrainedConfig, value: float | None) -> None:
    """Set every dropout key of a config, in place, before a model is built from it.

    Args:
        config: The model's config.
        value: Dropout probability in [0, 1); None keeps what the config says.
    """
    if value is None:
        return
    text_config = config.get_text_config()
    for key, dropout in dropout_overrides(config, value).items():
        setattr(text_config, key, dropout)


def _is_dropout(key: str, value: Any) -> bool:
    # ESM's `token_dropout` is a flag, and flags are ints in Python.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return ("dropout" in key or key.endswith("pdrop")) and (is_number or value is None)
