"""How is an embedding of a whole vocabulary cut down to the tokens that a study uses, and back?

A token that no row holds gets no gradient: in the forward pass it does not occur, and in training
only weight decay and L1 reach its row. So a trial keeps rows (and their optimiser state) of the
tokens in use only, and two numbers that say what decay and L1 have done to all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

__all__ = [
    "CutEmbedding",
    "UnusedRows",
    "Vocabulary",
    "compact",
    "expand_saved",
    "find_vocabulary",
    "vocabulary_notes",
]

_WORTHWHILE = 0.75
"""Above this share of the vocabulary in use nothing is cut."""
_MATTERS = 1_000_000
"""Weights of an embedding from which on it is worth a word that it is kept whole: an optimiser
step of fewer takes less than a millisecond."""
_ROWS = ".automl_ft_rows"
_UNUSED = ".automl_ft_unused"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vocabulary:
    """The tokens in use."""

    tokens: npt.NDArray[np.int64]
    """Their ids, rising, shape (num_used,)."""
    lookup: npt.NDArray[np.int64]
    """By token id its row in the cut embedding; -1 for tokens not in use."""


@dataclass(kw_only=True, slots=True)
class UnusedRows:
    """What training has done to each weight w of a row not in use: sign(w) max(0, keep |w| - loss).

    Decoupled decay multiplies by 1 - rate * decay; the soft threshold of L1 takes rate * l1 off
    the magnitude and stops at zero. Steps of that form compose to one of the same form, since
    what has come to zero stays there.
    """

    keep: float = 1.0
    """Product of all decay factors."""
    loss: float = 0.0
    """What L1 has taken off, decayed since."""

    def step(self, rate: float, weight_decay: float, l1: float) -> None:
        """Take in one optimiser step.

        Args:
            rate: Learning rate of the embedding.
            weight_decay: Its decoupled weight decay.
            l1: Strength of L1, 0 or more.
        """
        factor = 1 - rate * weight_decay
        self.keep *= factor
        self.loss = self.loss * factor + rate * l1

    def to_plain(self) -> list[float]:
        """Return both numbers, for a checkpoint.

        Returns:
            `keep` and `loss`.
        """
        return [self.keep, self.loss]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CutEmbedding:
    """A trial's embedding that holds the tokens in use only."""

    name: str
    """Name of its parameter."""
    parameter: Tensor
    """The parameter, shape (num_used, width)."""
    vocabulary: Vocabulary
    """The tokens in use."""
    unused: UnusedRows
    """What training did to the others."""

    def step(self, optimizer: torch.optim.Optimizer, l1: float) -> None:
        """Take in an optimiser step; call it before the rate and the gradients change.

        Args:
            optimizer: It has just made a step.
            l1: Strength of L1, 0 or more.
        """
        if self.parameter.grad is None:
            return  # frozen now: neither decay nor L1 reached it
        for group in optimizer.param_groups:
            if any(parameter is self.parameter for parameter in group["params"]):
                shrink = l1 if group["is_decayed"] else 0.0
                self.unused.step(float(group["lr"]), float(group["weight_decay"]), shrink)

    def saved(self) -> dict[str, Tensor]:
        """Return what must be written beside the cut embedding to make it whole again.

        Returns:
            Tensors by name; `expand_saved` reads them.
        """
        return {
            self.name + _ROWS: torch.from_numpy(self.vocabulary.tokens),
            self.name + _UNUSED: torch.tensor(self.unused.to_plain(), dtype=torch.float64),
        }


def find_vocabulary(
    model: PreTrainedModel, used: Iterable[npt.NDArray[np.integer]], also: Iterable[int]
) -> Vocabulary | None:
    """Say which rows of a model's embedding a study needs.

    Args:
        model: The model.
        used: Token ids of all rows that a trial reads, any shapes.
        also: Token ids that may be put in besides.

    Returns:
        The vocabulary; None where most of it is in use, the embedding is none of the plain kind,
        which alone can be cut, or another part of the model has the same weights.
    """
    embedding = model.get_input_embeddings()
    if _uncut_kind(model, embedding):
        return None
    assert isinstance(embedding, nn.Embedding)
    counts = _in_use(embedding.num_embeddings, used, also)
    if counts.sum() > _WORTHWHILE * len(counts):
        return None
    tokens = np.flatnonzero(counts).astype(np.int64)
    lookup = np.full(len(counts), -1, dtype=np.int64)
    lookup[tokens] = np.arange(len(tokens))
    return Vocabulary(tokens=tokens, lookup=lookup)


def vocabulary_notes(
    model: PreTrainedModel,
    used: Iterable[npt.NDArray[np.integer]],
    also: Iterable[int],
    *,
    is_packed: bool,
) -> tuple[str, ...]:
    """Say why a model's embedding is kept whole.

    Args:
        model: The model.
        used: As for `find_vocabulary`.
        also: As for `find_vocabulary`.
        is_packed: Whether trials run on packed rows; padded ones keep the token ids, as models
            look at them.

    Returns:
        One sentence; none where the embedding is cut, or too small to matter.
    """
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() < _MATTERS:
        return ()
    counts = _in_use(len(weight), used, also)
    reason = _uncut_kind(model, embedding)
    if counts.sum() > _WORTHWHILE * len(counts):
        reason = "as most of it is needed"
    elif not reason and not is_packed:
        reason = "as its batches are padded"
    if not reason:
        return ()
    name = type(model).__name__
    tokens = f"{counts.sum():,} of {len(counts):,} tokens in use"
    return (f"The embedding of `{name}` is kept whole, {reason}: {tokens}.",)


def _uncut_kind(model: PreTrainedModel, embedding: nn.Module) -> str:
    """Say why an embedding cannot be cut, whatever tokens are in use; empty where it can be."""
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return "as it is of a kind of its own"
    holders = (value for part in model.modules() for value in part._parameters.values())
    is_shared = sum(value is embedding.weight for value in holders) > 1
    return "as another part of the model shares it" if is_shared else ""


def _in_use(
    num_rows: int, used: Iterable[npt.NDArray[np.integer]], also: Iterable[int]
) -> npt.NDArray[np.bool_]:
    """Return for each row of an embedding whether a study needs it."""
    counts = np.zeros(num_rows, dtype=bool)
    # The first two stand for rows that are already computed (`models.classifier`).
    counts[:2] = True
    for ids in used:
        counts[ids] = True
    counts[[token for token in also if 0 <= token < len(counts)]] = True
    return counts


def compact(model: PreTrainedModel, vocabulary: Vocabulary) -> str:
    """Cut a model's embedding down, in place.

    Args:
        model: The model; from now on it takes row numbers of the cut embedding for token ids.
        vocabulary: The tokens in use.

    Returns:
        Name of the embedding's parameter.
    """
    old = model.get_input_embeddings()
    assert isinstance(old, nn.Embedding)
    name = next(name for name, value in model.named_parameters() if value is old.weight)
    rows = torch.from_numpy(vocabulary.tokens).to(old.weight.device)
    padding = None
    if old.padding_idx is not None and vocabulary.lookup[old.padding_idx] >= 0:
        padding = int(vocabulary.lookup[old.padding_idx])
    with torch.no_grad():
        weight = nn.Parameter(old.weight.index_select(0, rows), old.weight.requires_grad)
    old.weight = weight
    old.num_embeddings, old.padding_idx = len(rows), padding
    return name


def expand_saved(
    saved: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Turn cut embeddings among saved parameters into whole ones.

    Args:
        saved: Parameters by name, with what `CutEmbedding.saved` added; may hold no cut embedding.
        pretrained: The pretrained parameters by name.

    Returns:
        Parameters by name, nothing else.

    Raises:
        KeyError: A cut embedding is none of the pretrained parameters.
        IndexError: It has rows that the pretrained one has not.
    """
    whole = {n: v for n, v in saved.items() if not n.endswith((_ROWS, _UNUSED))}
    for key, rows in saved.items():
        if not key.endswith(_ROWS):
            continue
        name = key.removesuffix(_ROWS)
        keep, loss = saved[name + _UNUSED].tolist()
        full = functional.softshrink(pretrained[name].detach() * keep, loss)
        whole[name] = full.index_copy(0, rows, saved[name].to(full.dtype))
    return whole
