"""What training does to single layers: rates by depth, no decay for some, fresh top blocks."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from automl_ft.errors import ModelError
from automl_ft.models.layer_map import LayerMap
from automl_ft.models.seeding import seeded_init

__all__ = ["decay_exempt", "layer_depths", "reinit_top_blocks"]

_FLAG = "_is_hf_initialized"


def layer_depths(layer_map: LayerMap) -> dict[str, int]:
    """Return how far each parameter is from the head, for layer-wise rates.

    Source: Clark et al. 2020 (ELECTRA), appendix B; Howard & Ruder 2018, section 3.2.

    Args:
        layer_map: The parts of the model.

    Returns:
        Depth by parameter name: 0 for the head and what follows the blocks, 1 for the top block,
        one more for each block below, `num_layers` + 1 for the embeddings.
    """
    bottom_up = (layer_map.embeddings, *layer_map.blocks, (*layer_map.after, *layer_map.head))
    deepest = len(bottom_up) - 1
    return {name: deepest - i for i, part in enumerate(bottom_up) for name in part}


def decay_exempt(model: PreTrainedModel) -> frozenset[str]:
    """Return the parameters that get no weight decay and no L1: biases and norms.

    Args:
        model: The model.

    Returns:
        Names of the parameters that are vectors or scalars, are called a bias (XLNet's are
        matrices), or belong to a norm.
    """
    exempt = set()
    for module_name, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or parameter.ndim <= 1 or name.endswith("bias"):
                exempt.add(f"{module_name}.{name}" if module_name else name)
    return frozenset(exempt)


def reinit_top_blocks(
    model: PreTrainedModel, layer_map: LayerMap, *, num_layers: int, seed: int
) -> None:
    """Re-initialise the top blocks and the pooler, in place.

    What follows the blocks is re-initialised too, except norms: the pooler goes with the top
    blocks, as it reads them. Random states outside are left as they were.

    Source: Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning", section 4.

    Args:
        model: The model that the layer map was made of.
        layer_map: The parts of the model.
        num_layers: How many top blocks, from 0 to `layer_map.num_layers`; with 0 nothing changes.
        seed: Seed of the new weights.

    Raises:
        ModelError: The model has fewer blocks.
    """
    if not 0 <= num_layers <= layer_map.num_layers:
        raise ModelError(
            f"`reinit_layers` is {num_layers}, but this model has {layer_map.num_layers} blocks;"
            f" accepted: 0 to {layer_map.num_layers}."
        )
    if num_layers == 0:
        return
    with seeded_init(seed):
        for name in layer_map.block_modules[layer_map.num_layers - num_layers :]:
            model.get_submodule(name).apply(lambda module: _reinit(model, module))
        for name in dict.fromkeys(name.rpartition(".")[0] for name in layer_map.after):
            module = model.get_submodule(name)
            if "norm" not in type(module).__name__.lower():
                _reinit(model, module)


@torch.no_grad()
def _reinit(model: PreTrainedModel, module: nn.Module) -> None:
    """Apply the model's own initialisation to a module whose children have had theirs.

    NOTE: transformers' initialisers skip tensors that are flagged as loaded, and an initialiser
    may reach into children (GPT-2 scales `c_proj` from the attention around it).
    """
    flagged = [p for p in module.parameters() if getattr(p, _FLAG, False)]
    for parameter in flagged:
        setattr(parameter, _FLAG, False)
    model._init_weights(module)  # type: ignore[no-untyped-call]
    for parameter in flagged:
        setattr(parameter, _FLAG, True)
