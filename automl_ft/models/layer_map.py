"""Which parameters and modules of a model are its embeddings, its blocks, what follows, its head.

The answer comes from the module tree and from the order in which modules run, not from a list of
architectures. What follows from the parts (what is frozen, which rate each has) is left to
`models.freezing` and `models.layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from automl_ft.errors import ModelError

__all__ = ["LayerMap", "map_layers"]

_TRACE_TOKENS = 8
_CODE_POINTS = 128
_RIVAL_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMap:
    """The parts of one model, in the order in which they run.

    Every parameter and every module of the model is in exactly one part. Names are those of
    `named_parameters()` and `named_modules()`.
    """

    embeddings: tuple[str, ...]
    """Parameters used before the first block."""
    blocks: tuple[tuple[str, ...], ...]
    """Parameters of each block, bottom first; blocks that share weights (ALBERT) count once."""
    after: tuple[str, ...]
    """Parameters of the base model used after the last block: final norm, pooler."""
    head: tuple[str, ...]
    """Parameters outside the base model, and every newly initialised one wherever it is."""
    modules: tuple[tuple[str, ...], ...]
    """Modules of each part: embeddings, each block, after, head. A module that holds others
    stands for its own training flag only."""
    block_modules: tuple[str, ...]
    """The module of each block, bottom first."""
    boundaries: frozenset[int]
    """Depths at which the blocks below have run for good before the one above begins. Blocks that
    share weights may run in turns (ALBERT with an `inner_group_num` above 1), and then nothing
    between them depends on the lower one alone."""
    constants: frozenset[str]
    """Parameters that the architecture itself never trains (fixed sinusoids)."""
    has_pretrained_embeddings: bool
    """Whether no parameter below the first block is newly initialised."""

    @property
    def num_layers(self) -> int:
        """Distinct blocks."""
        return len(self.blocks)

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Parameters of each part: embeddings, each block, after, head."""
        return (self.embeddings, *self.blocks, self.after, self.head)


def map_layers(model: PreTrainedModel, newly_initialised: Iterable[str] = ()) -> LayerMap:
    """Find the parts of a sequence classifier.

    Runs one row of a few tokens through the model, in eval mode and without gradient; the model
    is left as it was. Something that runs between two blocks belongs to the lower one. What never
    runs as a module (relative positions that are read as a table, a mask embedding) belongs to the
    embeddings: the lowest part is the one that is never trainable below a frozen block.

    Args:
        model: The model with its head.
        newly_initialised: Parameters that the checkpoint did not hold.

    Returns:
        The parts.

    Raises:
        ModelError: The model has both encoder and decoder, no head outside its base model, no
            stack of blocks or several, does not run, or lacks pretrained weights in its blocks.
    """
    base_name = _base_name(model)
    blocks = _find_blocks(model, base_name)
    order, level_of, boundaries = _run_order(model, base_name, blocks)
    levels = {name: _level(name, base_name, order, level_of) for name, _ in model.named_modules()}
    found = _assemble(model, levels, order, frozenset(newly_initialised))
    return LayerMap(**found, block_modules=tuple(order), boundaries=boundaries)


def _refuse(model: PreTrainedModel, problem: str) -> ModelError:
    return ModelError(
        f"The layers of `{type(model).__name__}` (model_type `{model.config.model_type}`) cannot be"
        f" mapped: {problem} Accepted are encoders and decoders with one stack of blocks; choose"
        " another model."
    )


def _base_name(model: PreTrainedModel) -> str:
    if getattr(model.config, "is_encoder_decoder", False):
        raise _refuse(model, "it has both an encoder and a decoder.")
    name = next((n for n, module in model.named_modules() if module is model.base_model), "")
    inside = sum(1 for n, _ in model.named_parameters() if n.startswith(f"{name}."))
    if not name or inside == sum(1 for _ in model.named_parameters()):
        raise _refuse(
            model,
            "no classification head was found outside its base model"
            f" (`base_model_prefix` is `{model.base_model_prefix}`).",
        )
    return name


def _find_blocks(model: PreTrainedModel, base_name: str) -> list[str]:
    """Return the names of the blocks, in the order of the module tree."""
    stacks = _stacks(model, base_name)
    if not stacks:
        raise _refuse(model, "its base model holds no `ModuleList` of blocks with parameters.")
    sizes = {kind: _num_parameters(model, names) for kind, names in stacks.items()}
    # On a tie the outer list wins: ALBERT's groups hold all that their inner layers hold.
    best = max(stacks, key=lambda kind: (sizes[kind], -stacks[kind][0].count(".")))
    for names in stacks.values():
        outside = [name for name in names if not _is_inside(name, stacks[best])]
        if _num_parameters(model, outside) > _RIVAL_FRACTION * sizes[best]:
            raise _refuse(
                model,
                f"besides the {len(stacks[best])} blocks `{stacks[best][0]}`, ... it has a second"
                f" stack of {len(outside)}, `{outside[0]}`, ....",
            )
    return stacks[best]


def _stacks(model: PreTrainedModel, base_name: str) -> dict[frozenset[type], list[str]]:
    """Group the children of all module lists of the base model by the classes in their list."""
    stacks: dict[frozenset[type], list[str]] = {}
    for name, module in model.named_modules():
        if not name.startswith(f"{base_name}.") or not isinstance(module, nn.ModuleList):
            continue
        children = [c for c in module if any(True for _ in c.parameters())]
        kinds = frozenset(type(child) for child in children)
        if not children or kinds & {nn.ModuleList, nn.Embedding}:
            continue
        found = stacks.setdefault(kinds, [])
        inner = {id(child) for child in children}
        found.extend(
            f"{name}.{key}" for key, child in module.named_children() if id(child) in inner
        )
    return stacks


def _num_parameters(model: PreTrainedModel, names: Iterable[str]) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


def _is_inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _run_order(
    model: PreTrainedModel, base_name: str, blocks: list[str]
) -> tuple[list[str], dict[str, int], frozenset[int]]:
    """Return the blocks in the order in which they run, when other modules run first, boundaries.

    A module's time is 0 before the first block, k above the k-th block of the order, and one more
    than the number of blocks after the last run of any block.
    """
    events = _trace(model, base_name, blocks)
    runs = [name for name in events if name in blocks]
    order = list(dict.fromkeys(runs))
    if missing := [name for name in blocks if name not in order]:
        raise _refuse(model, f"its block `{missing[0]}` did not run on a row of tokens.")
    level_of: dict[str, int] = {}
    num_runs = 0
    for name in events:
        if name in blocks:
            num_runs += 1
        elif num_runs == len(runs):
            level_of.setdefault(name, len(order) + 1)
        else:
            level_of.setdefault(name, order.index(runs[num_runs - 1]) + 1 if num_runs else 0)
    return order, level_of, _boundaries([order.index(name) for name in runs])


def _boundaries(runs: Sequence[int]) -> frozenset[int]:
    """Return the depths that no run of a block below follows one of a block above."""
    cuts = range(len(runs) + 1)
    depths = {max(runs[:cut], default=-1) + 1: cut for cut in cuts}
    return frozenset(
        depth for depth, cut in depths.items() if all(block >= depth for block in runs[cut:])
    )


def _trace(model: PreTrainedModel, base_name: str, blocks: list[str]) -> list[str]:
    """Return the names of the modules of the base model, as they start running.

    A block is listed when it ends. Modules inside blocks are left out.
    """
    events: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: events.append(name)

    handles = []
    for name, module in model.named_modules():
        if name in blocks:
            handles.append(module.register_forward_hook(note(name)))
        elif _is_inside(name, [base_name]) and not _is_inside(name, blocks):
            handles.append(module.register_forward_pre_hook(note(name)))
    try:
        _run_once(model)
    finally:
        for handle in handles:
            handle.remove()
    return events


def _run_once(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    # CANINE reads code points and so has no vocabulary.
    vocabulary = range(getattr(config, "vocab_size", _CODE_POINTS))
    padding = getattr(config, "pad_token_id", None)
    tokens = list(islice((token for token in vocabulary if token != padding), _TRACE_TOKENS))
    input_ids = torch.tensor([tokens], device=model.device)
    try:
        with torch.no_grad(), _as_it_was(model):
            model.eval()  # type: ignore[no-untyped-call]
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    except Exception as error:
        raise _refuse(
            model, f"it does not run on a row of {len(tokens)} tokens ({error})."
        ) from error


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back what a model changes in itself: BigBird gives up sparse attention on a short row."""
    before = [(part, dict(part.__dict__), dict(part._modules)) for part in model.modules()]
    try:
        yield
    finally:
        for part, attributes, children in before:
            part.__dict__.update(attributes)
            part._modules.clear()
            part._modules.update(children)


def _level(name: str, base_name: str, order: list[str], level_of: dict[str, int]) -> int:
    """Return the part of a module: 0 embeddings, then the blocks, after, head."""
    if not _is_inside(name, [base_name]):
        return len(order) + 2
    for position, block in enumerate(order):
        if _is_inside(name, [block]):
            return position + 1
    while name not in level_of and name != base_name:
        name = name.rpartition(".")[0]
    return level_of.get(name, 0)


def _assemble(
    model: PreTrainedModel, levels: dict[str, int], order: list[str], new: frozenset[str]
) -> dict[str, Any]:
    """Return the fields of a layer map that are made of parts."""
    head = len(order) + 2
    level_of = {name: levels[name.rpartition(".")[0]] for name, _ in model.named_parameters()}
    new = new & level_of.keys()
    if lost := sorted(name for name in new if 1 <= level_of[name] <= len(order)):
        total = sum(1 for level in level_of.values() if 1 <= level <= len(order))
        raise _refuse(
            model,
            f"its checkpoint lacks {len(lost)} of the {total} parameters of its blocks, first"
            f" `{lost[0]}`.",
        )
    parts: list[list[str]] = [[] for _ in range(head + 1)]
    for name, level in level_of.items():
        parts[head if name in new else level].append(name)
    modules: list[list[str]] = [[] for _ in range(head + 1)]
    for name, module in model.named_modules():
        modules[head if _is_new(name, module, new) else levels[name]].append(name)
    return {
        "embeddings": tuple(parts[0]),
        "blocks": tuple(tuple(part) for part in parts[1:-2]),
        "after": tuple(parts[-2]),
        "head": tuple(parts[-1]),
        "modules": tuple(tuple(part) for part in modules),
        "constants": frozenset(n for n, p in model.named_parameters() if not p.requires_grad),
        "has_pretrained_embeddings": not any(level_of[name] == 0 for name in new),
    }


def _is_new(name: str, module: nn.Module, new: frozenset[str]) -> bool:
    """Tell whether a module has parameters and all of them are newly initialised."""
    inside = [f"{name}.{key}" for key, _ in module.named_parameters()]
    return bool(inside) and new.issuperset(inside)
