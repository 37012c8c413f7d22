"""What would a model's new head be with another seed, and its dropout with another setting?

So that the heads of several trials need no whole model each. Whatever cannot be told for sure is
left to loading the model again.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from automl_ft.models.dropout import apply_dropout, dropout_probability
from automl_ft.models.seeding import seeded_init

__all__ = ["dropouts_of", "dropouts_with", "head_with_seed"]

_FLAG = "_is_hf_initialized"


def head_with_seed(
    model: PreTrainedModel, names: Collection[str], seed: int, *, own_seed: int
) -> dict[str, Tensor] | None:
    """Return the head that loading the model with another seed gives.

    Args:
        model: A model as it was loaded; left so.
        names: The parameters of its head.
        seed: The other seed.
        own_seed: The seed that it was loaded with: what is drawn from it must be what the model
            holds, bit by bit.

    Returns:
        Parameters by name, on the CPU; None where loading draws them in another way, or reads
        some of them from the checkpoint.
    """
    own = _draw(model, names, own_seed)
    for name, drawn in own.items():
        if not torch.equal(drawn, model.get_parameter(name).detach().cpu()):
            return None
    return _draw(model, names, seed)


def _draw(model: PreTrainedModel, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Draw parameters as `from_pretrained` draws those that a checkpoint lacks."""
    parameters = {name: model.get_parameter(name) for name in sorted(names)}
    held = {name: parameter.data for name, parameter in parameters.items()}
    # An initialiser may reach into children (ModernBERT draws its classifier from the top).
    holders = [m for n, m in model.named_modules() if any(_is_in(name, n) for name in parameters)]
    for name, parameter in parameters.items():
        # NaN, so that what is not drawn at all shows. On the CPU, where the seed counts.
        parameter.data = torch.full_like(held[name], torch.nan, device="cpu")
    try:
        _flag([*parameters.values(), *holders], is_initialised=False)
        with seeded_init(seed):
            model.initialize_weights()  # type: ignore[no-untyped-call]
        return {name: parameter.data for name, parameter in parameters.items()}
    finally:
        _flag([*parameters.values(), *holders], is_initialised=True)
        for name, parameter in parameters.items():
            parameter.data = held[name]


def _is_in(parameter: str, module: str) -> bool:
    return not module or parameter.startswith(f"{module}.")


def _flag(things: list[nn.Parameter | nn.Module], *, is_initialised: bool) -> None:
    """Set whether transformers' initialisers pass something over."""
    for thing in things:
        setattr(thing, _FLAG, is_initialised)


def dropouts_of(model: nn.Module) -> dict[str, float]:
    """Return the probability of each dropout layer.

    Args:
        model: The model.

    Returns:
        Probabilities by name of the module.
    """
    found = {name: dropout_probability(module) for name, module in model.named_modules()}
    return {name: p for name, p in found.items() if p is not None}


def dropouts_with(model: PreTrainedModel, dropout: float) -> dict[str, float]:
    """Return the probability of each dropout layer if the model were loaded with another one.

    Args:
        model: The model; not changed.
        dropout: Dropout probability everywhere, in [0, 1).

    Returns:
        Probabilities by name of the module.
    """
    config = copy.deepcopy(model.config)
    apply_dropout(config, dropout)
    with torch.device("meta"):  # the layers without weights
        return dropouts_of(type(model)(config))
