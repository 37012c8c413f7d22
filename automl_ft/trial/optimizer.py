"""Which optimiser trains which parameter at which rate?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "OptimizerSettings",
    "allocate_state",
    "build_optimizer",
    "clipped_gradients",
    "shrink_l1",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """The optimiser's part of a recipe."""

    learning_rate: float
    """Peak rate at the head, above 0."""
    weight_decay: float
    """Decoupled L2, 0 or more."""
    layerwise_lr_decay: float
    """Factor on the rate for each block further from the head, in (0, 1]."""


def build_optimizer(
    model: nn.Module,
    names: Iterable[str],
    depths: Mapping[str, int],
    exempt: frozenset[str],
    settings: OptimizerSettings,
    *,
    is_fused: bool = True,
) -> torch.optim.AdamW:
    """Build AdamW with one group for each pair of rate and decay.

    Betas 0.9 and 0.999 and epsilon 1e-8 are the defaults of `transformers.TrainingArguments`;
    bias correction is on (Mosbach et al. 2021, section 5). The rate of a parameter is
    `learning_rate * layerwise_lr_decay ** depth` (Clark et al. 2020, ELECTRA, appendix B).

    Args:
        model: The model.
        names: Parameters that the trial may train at some time.
        depths: Distance from the head by parameter name, 0 at the head.
        exempt: Parameters without weight decay (norms and biases).
        settings: Rates and decay.
        is_fused: Whether one kernel does all, where the device has it.

    Returns:
        The optimiser. Each group holds `lr`, `weight_decay` and `is_decayed`, by which
        `shrink_l1` chooses.
    """
    wanted = set(names)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in wanted:
            groups.setdefault((depths[name], name not in exempt), []).append(parameter)
    options = [
        {
            "params": parameters,
            "lr": settings.learning_rate * settings.layerwise_lr_decay**depth,
            "weight_decay": settings.weight_decay if is_decayed else 0.0,
            "is_decayed": is_decayed,
        }
        for (depth, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    can_fuse = next(model.parameters()).device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(options, betas=(0.9, 0.999), eps=1e-8, fused=is_fused and can_fuse)


@contextmanager
def clipped_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], max_norm: float
) -> Iterator[Tensor]:
    """Clip gradients by their global norm (Pascanu et al. 2013, algorithm 1) in a step.

    What `torch.nn.utils.clip_grad_norm_` does in a pass over all gradients of its own, the fused
    step does while it reads them anyway: it divides them by a scale. Without a fused step, and on
    Apple's devices, torch's own function clips.

    Args:
        optimizer: From `build_optimizer`; its step belongs inside the block.
        parameters: Those that have a gradient.
        max_norm: The norm to clip to, above 0.

    Yields:
        The norm before clipping, a scalar on the device.
    """
    device = parameters[0].device.type if parameters else "cpu"
    if not parameters or not optimizer.defaults["fused"] or device == "mps":
        yield nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    with torch.no_grad():
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The constant is torch's, against a norm of 0.
        scale = ((norm + 1e-6) / max_norm).clamp(min=1.0)
    # Whether it is needed a GPU would have to be waited for to know.
    optimizer.grad_scale = scale if device != "cpu" or scale > 1 else None  # type: ignore[attr-defined]
    try:
        yield norm
    finally:
        optimizer.grad_scale = None  # type: ignore[attr-defined]


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Take the memory of the next step before anything moves.

    AdamW by itself makes the state of one group of parameters, steps it, and goes on to the next:
    where memory runs out in between, some parameters have moved and others have not. What is made
    here are the zeros that it would make; what is there already stays, so that a call that failed
    may be repeated.

    Args:
        optimizer: From `build_optimizer`; each parameter that has a gradient gets its state.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not optimizer.state.get(parameter):
                # All or nothing: AdamW takes any state for a whole one.
                optimizer.state[parameter] = {
                    # The fused step reads it on the device, others on the CPU.
                    "step": torch.zeros((), device=parameter.device if group["fused"] else "cpu"),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }


@torch.no_grad()
def shrink_l1(optimizer: torch.optim.Optimizer, l1: float) -> None:
    """Apply decoupled L1 after a step: the soft threshold `rate * l1`.

    It is the proximal operator of the L1 norm (Parikh & Boyd 2014, Proximal Algorithms, section
    6.5.2), decoupled from the gradient as AdamW decouples L2; norms and biases are left alone.

    Args:
        optimizer: From `build_optimizer`, just after its step.
        l1: Strength, 0 or more; 0 does nothing.
    """
    if l1 == 0:
        return
    for group in optimizer.param_groups:
        if not group["is_decayed"]:
            continue
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.copy_(nn.functional.softshrink(parameter, float(group["lr"]) * l1))
