"""Which small steps make up a model's head, and how are the heads of several trials run as one?

The steps are found by watching the head at work on a few rows, not from a list of architectures:
layers with parameters and dropout are seen, what happens between them is found by trying. A chain
that does not give the model's own scores is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from automl_ft.models.dropout import dropout_probability
from automl_ft.models.prefix import patched

__all__ = ["HeadChain", "HeadStep", "find_head_chain"]

_TOLERANCE = 1e-4
"""How far scores may lie apart, relative to the largest: fp32 sums in another order differ by less
than 1e-5."""
_ULPS = 1e-6
"""How far the values of one and the same function may."""
_BETWEEN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda values: values,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
"""What may happen between two layers."""

Drop = Callable[[str, Tensor], Tensor]
"""Dropout of many heads at once: from a module's name and values (G, B, width) to values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadStep:
    """One step of a head."""

    kind: str
    """`linear`, `norm`, `dropout`, or what happens between layers."""
    module: str | None = None
    """The module's name; None between layers."""
    has_bias: bool = False
    """Whether it has one."""
    eps: float = 0.0
    """That of a norm."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the step's parameters."""
        if self.kind not in ("linear", "norm"):
            return ()
        names = ("weight", "bias") if self.has_bias else ("weight",)
        return tuple(f"{self.module}.{name}" for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadChain:
    """A head as steps, one after the other."""

    steps: tuple[HeadStep, ...]
    """The steps; the first one is that of a module."""

    @property
    def parameters(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset(name for step in self.steps for name in step.parameters)

    @property
    def dropouts(self) -> frozenset[str]:
        """Names of the dropout modules."""
        return frozenset(str(step.module) for step in self.steps if step.kind == "dropout")

    def features(self, model: nn.Module, run: Callable[[Tensor], Tensor], pooled: Tensor) -> Tensor:
        """Return what the first step reads.

        Args:
            model: The model.
            run: Scores of the model from states that its head reads.
            pooled: Such states, shape (rows, width).

        Returns:
            Shape (rows, width of the first step).
        """
        found: list[Tensor] = []
        module = model.get_submodule(str(self.steps[0].module))
        handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        try:
            with torch.no_grad():
                run(pooled)
        finally:
            handle.remove()
        return _flat(found[0], len(pooled))

    def scores(
        self, values: Tensor, parameters: Mapping[str, Tensor], drop: Drop | None = None
    ) -> Tensor:
        """Run many heads at once, each on rows of its own.

        Args:
            values: What the first step reads, shape (G, B, width).
            parameters: By name, each of shape (G, ...).
            drop: Dropout; None for none.

        Returns:
            Scores, shape (G, B, num_labels).
        """
        for step in self.steps:
            if step.kind == "dropout":
                values = values if drop is None else drop(str(step.module), values)
            elif step.kind in _BETWEEN:
                values = _BETWEEN[step.kind](values)
            else:
                weight, *bias = (parameters[name] for name in step.parameters)
                layer = _linear if step.kind == "linear" else partial(_norm, step.eps)
                values = layer(values, weight, bias[0][:, None] if bias else None)
        return values


def find_head_chain(
    model: nn.Module,
    frozen: Collection[str],
    trainable: frozenset[str],
    run: Callable[[Tensor], Tensor],
    pooled: Tensor,
) -> HeadChain | None:
    """Find the steps of a model's head.

    Args:
        model: In fp32; left in eval mode.
        frozen: Names of the modules below the head.
        trainable: Names of the parameters that are trained.
        run: Scores of the model, (rows, num_labels), from states that its head reads.
        pooled: A few such states that differ, shape (rows, width).

    Returns:
        The steps; None where the head is something else.
    """
    model.eval()
    leaves = {
        name: module
        for name, module in model.named_modules()
        if name not in frozen and next(module.children(), None) is None and _is_seen(module)
    }
    with torch.no_grad():
        seen, scores = _watch(leaves, run, pooled)
        steps = _steps(leaves, seen, scores, len(pooled))
        if not steps:
            return None
        chain = HeadChain(steps=steps)
        if chain.parameters != trainable or not _agrees(model, frozen, chain, run, pooled):
            return None
    return chain


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """One run of one module."""

    name: str
    read: Tensor
    gave: Tensor


def _is_seen(module: nn.Module) -> bool:
    return dropout_probability(module) is not None or any(True for _ in module.parameters())


def _watch(
    leaves: Mapping[str, nn.Module], run: Callable[[Tensor], Tensor], pooled: Tensor
) -> tuple[list[_Seen], Tensor]:
    """Run the head with random outputs of its layers.

    A head that is not trained gives values so small that tanh or SiLU look like something else.
    """
    seen: list[_Seen] = []
    generator = torch.Generator().manual_seed(0)

    def note(name: str, args: tuple[Tensor, ...], gave: Tensor) -> Tensor:
        drawn = 2 * torch.randn(gave.shape, generator=generator).to(gave.device)
        seen.append(_Seen(name=name, read=args[0], gave=drawn))
        return drawn

    with ExitStack() as stack:
        for name, module in leaves.items():
            hook = lambda _, args, gave, name=name: note(name, args, gave)  # noqa: E731
            stack.callback(module.register_forward_hook(hook).remove)
        return seen, run(pooled)


def _steps(
    leaves: Mapping[str, nn.Module], seen: Sequence[_Seen], scores: Tensor, num_rows: int
) -> tuple[HeadStep, ...]:
    """Return the steps; none where one is not understood."""
    steps: list[HeadStep] = []
    for position, run in enumerate(seen):
        step = _step(run.name, leaves[run.name])
        following = seen[position + 1].read if position + 1 < len(seen) else scores
        between = _between(run.gave, following, num_rows)
        if step is None or between is None:
            return ()
        steps.append(step)
        if between != "none":
            steps.append(HeadStep(kind=between))
    return tuple(steps)


def _step(name: str, module: nn.Module) -> HeadStep | None:
    if dropout_probability(module) is not None:
        return HeadStep(kind="dropout", module=name)
    if type(module) is nn.Linear:
        return HeadStep(kind="linear", module=name, has_bias=module.bias is not None)
    if type(module) is nn.LayerNorm and module.weight is not None:
        has_bias = module.bias is not None
        return HeadStep(kind="norm", module=name, has_bias=has_bias, eps=module.eps)
    return None


def _between(gave: Tensor, following: Tensor, num_rows: int) -> str | None:
    """Return what turns one layer's output into what the next one reads."""
    before, after = _flat(gave, num_rows), _flat(following, num_rows)
    for kind, function in _BETWEEN.items():
        if _is_close(function(before), after, _ULPS):
            return kind
    return None


def _flat(values: Tensor, num_rows: int) -> Tensor:
    """Drop the axis of the single position of each row."""
    return values.reshape(num_rows, -1)


def _is_close(values: Tensor, wanted: Tensor, tolerance: float = _TOLERANCE) -> bool:
    if values.shape != wanted.shape:
        return False
    limit = tolerance * max(float(wanted.abs().max()), 1e-6)
    return float((values - wanted).abs().max()) <= limit


def _agrees(
    model: nn.Module,
    frozen: Collection[str],
    chain: HeadChain,
    run: Callable[[Tensor], Tensor],
    pooled: Tensor,
) -> bool:
    """Tell whether the chain gives the model's scores in training mode.

    Dropout is replaced by something that is the same on both sides, so dropout that is no module
    of its own shows as a difference.
    """
    modules = dict(model.named_modules())
    values = chain.features(model, run, pooled)
    weights = {name: model.get_parameter(name).detach()[None] for name in chain.parameters}
    with ExitStack() as stack:
        stack.enter_context(_training(modules, frozen))
        for name in chain.dropouts:
            stack.enter_context(patched(modules[name], _ramp))
        wanted = run(pooled)
    return _is_close(chain.scores(values[None], weights, lambda _, v: _ramp(v))[0], wanted)


@contextmanager
def _training(modules: Mapping[str, nn.Module], frozen: Collection[str]) -> Iterator[None]:
    changed = [module for name, module in modules.items() if name not in frozen]
    for module in changed:
        module.training = True
    try:
        yield
    finally:
        for module in changed:
            module.training = False


def _ramp(values: Tensor) -> Tensor:
    return values * torch.linspace(0.5, 1.5, values.shape[-1], device=values.device)


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The weights on the left, so that their gradients come out in the order of their own memory.
    columns = values.transpose(1, 2)
    if bias is None:
        return torch.bmm(weight, columns).transpose(1, 2)
    return torch.baddbmm(bias.transpose(1, 2), weight, columns).transpose(1, 2)


def _norm(eps: float, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # As torch's own kernel does it: in fp32, rounded once.
    plain = functional.layer_norm(values.float(), values.shape[-1:], eps=eps)
    scaled = plain * weight[:, None].float()
    return (scaled if bias is None else scaled + bias.float()).to(values.dtype)
