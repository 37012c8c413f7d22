"""How does one dropout probability reach a whole model, and where do its masks come from?

Keys are read from the config itself rather than from a list of models. A head that its
architecture builds without dropout (most decoders) stays without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

__all__ = [
    "DropoutStream",
    "apply_dropout",
    "dropout_overrides",
    "dropout_probability",
    "use_stream",
]

_LEVELS = 2**16
"""Probabilities are rounded to 1/65536: a mask takes 16 random bits an element."""


class DropoutStream:
    """The dropout masks of one trial on a CPU: a function of seed, step and order of the draws.

    torch draws masks one element after the other (16 % of a training step of MiniLM on two
    cores); 16 bits of a fast generator for each element do as well at a fifth of the time. As the
    masks depend on the step and on nothing before it, a resumed trial needs no generator's state.
    """

    def __init__(self, seed: int) -> None:
        """Start at step 0.

        Args:
            seed: The trial's seed, 0 or more.
        """
        self._seed = seed
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start the masks of a step.

        Args:
            step: Optimiser step, from 0.
        """
        # The constant keeps this stream apart from those of data, augmentation and mixup.
        self._bits = np.random.SFC64([self._seed, step, 0, 3])

    @property
    def position(self) -> Any:
        """Where the stream stands; `go_to` takes it back there, to draw the same masks again."""
        return self._bits.state

    def go_to(self, position: Any) -> None:
        """Draw on from another place.

        Args:
            position: Where the stream stood when `position` was read.
        """
        self._bits.state = position

    def mask(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        """Draw a mask.

        Args:
            shape: Its shape.
            p: Probability of a zero, in [0, 1).
            dtype: Its type.

        Returns:
            0 or 1 / (1 - p), independently, so that its mean is 1.
        """
        threshold = min(round(p * _LEVELS), _LEVELS - 1)
        count = shape.numel()
        words = np.asarray(self._bits.random_raw(-(-count // 4)), dtype=np.uint64)
        # By numpy, and in bf16 as a product of whole numbers with the bits of the scale: torch
        # takes ten times as long to turn truth values into bf16.
        kept = np.greater_equal(words.view(np.int16)[:count], threshold - _LEVELS // 2)
        scale = _LEVELS / (_LEVELS - threshold)
        if dtype is torch.bfloat16:
            bits = torch.tensor(scale, dtype=dtype).view(torch.int16).numpy()
            return torch.from_numpy(np.multiply(kept, bits, dtype=np.int16)).view(dtype).view(shape)
        found = torch.from_numpy(np.multiply(kept, np.float32(scale)))
        return found.to(dtype).view(shape)

    def drop(self, values: Tensor, p: float) -> Tensor:
        """Apply dropout (Srivastava et al. 2014, scaled at training time).

        Args:
            values: Any tensor.
            p: Probability of a zero, in [0, 1).

        Returns:
            The values, each zero with probability `p`, else scaled by 1 / (1 - p). On other
            devices than a CPU torch's own kernel draws.
        """
        if values.device.type != "cpu":
            return functional.dropout(values, p)
        return values * self.mask(values.shape, p, values.dtype)


class _StreamDropout(nn.Module):
    """Takes the place of `nn.Dropout`."""

    def __init__(self, p: float, stream: DropoutStream) -> None:
        super().__init__()
        self.p = p
        self.stream = stream

    def forward(self, values: Tensor) -> Tensor:
        """Drop values in training mode."""
        return self.stream.drop(values, self.p) if self.training and self.p > 0 else values


def use_stream(model: nn.Module, stream: DropoutStream) -> None:
    """Have a model's dropout layers draw from a stream, in place; names and modes stay.

    Args:
        model: The model; only layers of exactly the type `nn.Dropout` are replaced.
        stream: Where masks come from.
    """
    replaced: dict[int, _StreamDropout] = {}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if type(child) is nn.Dropout and child.p < 1:
                new = replaced.setdefault(id(child), _StreamDropout(child.p, stream))
                new.train(child.training)
                setattr(module, name, new)


def dropout_probability(module: nn.Module) -> float | None:
    """Return the probability with which a module drops values.

    Args:
        module: Any module.

    Returns:
        The probability; None for anything but a layer of exactly the type `nn.Dropout`, or what
        `use_stream` put in the place of one.
    """
    if type(module) is nn.Dropout or isinstance(module, _StreamDropout):
        return float(module.p)
    return None


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
