"""In which copy of the model do forward and backward run, and how do gradients come home?

In fp32 the model itself computes. In bf16 a copy of it does: the parameters of the model stay in
fp32, are what the optimiser changes (Micikevicius et al. 2018, "Mixed Precision Training",
section 3.1), and are what is saved and settles a validation. bf16 has the range of fp32, so no loss
scaling is needed (Kalamkar et al. 2019, arXiv 1905.12322).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from automl_ft.models.freezing import FreezingPlan
from automl_ft.trial.memory import is_out_of_memory

__all__ = ["ComputeModel", "bf16_copy", "compute_model", "runs_in_bf16"]

_FEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ComputeModel:
    """The model that computes, beside the one that holds the fp32 parameters."""

    model: PreTrainedModel
    """Runs forward and backward; `master` itself in fp32."""
    master: PreTrainedModel
    """Holds the parameters in fp32."""
    pairs: tuple[tuple[nn.Parameter, nn.Parameter], ...]
    """Copies and masters of what may be trained; empty in fp32."""
    buffers: tuple[Tensor, ...] = ()
    """The masters' gradients, in the order of the pairs, kept from step to step: fresh memory of
    that size costs eight times as much as the copy into it."""

    def enter(self, plan: FreezingPlan, stage: int) -> None:
        """Set what is trainable and in training mode.

        Args:
            plan: The freezing plan.
            stage: Its stage.
        """
        for model in (self.master, self.model) if self.pairs else (self.model,):
            plan.apply(model, stage)
            plan.set_train_mode(model, stage)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copies' gradients to those of the masters, in fp32, and drop them."""
        fresh: list[tuple[Tensor, Tensor]] = []
        for (copied, master), buffer in zip(self.pairs, self.buffers, strict=True):
            if copied.grad is None:
                continue
            if master.grad is None:
                master.grad = buffer
                fresh.append((buffer, copied.grad))
            else:
                master.grad.add_(copied.grad)
            copied.grad = None
        if fresh:  # one launch on a GPU instead of one for each parameter
            torch._foreach_copy_([into for into, _ in fresh], [grad for _, grad in fresh])

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date after a step; parameters without gradient did not move."""
        moved = [(copied, master) for copied, master in self.pairs if master.grad is not None]
        if moved:
            torch._foreach_copy_([c for c, _ in moved], [m for _, m in moved])

    def reload(self) -> None:
        """Bring all copies up to date, after the masters were restored."""
        with torch.no_grad():
            for copied, master in self.pairs:
                copied.copy_(master)


def compute_model(model: PreTrainedModel, plan: FreezingPlan, precision: str) -> ComputeModel:
    """Make the model that computes.

    Args:
        model: In fp32, on its device.
        plan: Says what may be trained.
        precision: `fp32`, `tf32` or `bf16`.

    Returns:
        The pair.
    """
    if precision != "bf16":
        return ComputeModel(model=model, master=model, pairs=())
    twin = bf16_copy(model)
    masters = dict(model.named_parameters())
    wanted = plan.ever_trainable()
    pairs = tuple((p, masters[name]) for name, p in twin.named_parameters() if name in wanted)
    return ComputeModel(
        model=twin,
        master=model,
        pairs=pairs,
        buffers=tuple(torch.empty_like(master) for _, master in pairs),
    )


def bf16_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model in bf16, but for the frequencies of rotary positions.

    Their products with positions need fp32: in bf16 the angle of token 256 is off by 0.1 radian.
    transformers keeps these buffers, which all its architectures call `inv_freq`, in fp32 too when
    it loads a checkpoint in bf16.

    Args:
        model: In fp32; left as it is.

    Returns:
        The copy.
    """
    # What is there already is not copied again, in fp32, on the way.
    made: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and "inv_freq" not in name:
            made[id(buffer)] = buffer.to(torch.bfloat16)
    return copy.deepcopy(model, made)


def runs_in_bf16(model: PreTrainedModel) -> bool:
    """Try whether a model has all its operators in bf16, forward and backward.

    Args:
        model: In fp32, on the device where it will train; left as it is.

    Returns:
        False where a copy of it in bf16 fails (the Fourier transform of FNet), or gives no numbers.

    Raises:
        Exception: Memory ran out, which says nothing of the model.
    """
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", _FEW_TOKENS)
    ids = torch.arange(1, 9, device=model.device).remainder(vocabulary).view(2, 4)
    try:
        twin = bf16_copy(model)
        with torch.enable_grad():
            scores = twin(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            scores.float().square().sum().backward()
    except Exception as error:
        # Which errors missing operators raise cannot be known; none of them is the user's.
        if is_out_of_memory(error):
            raise
        return False
    return bool(torch.isfinite(scores).all())
