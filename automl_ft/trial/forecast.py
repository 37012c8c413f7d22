"""What will a trial take of memory at its peak, known before it takes it?

Which tensors live at which moment is not derived from a list of layers but read from the model
itself: a few tiny batches run through the very code that trains, and every operation's live bytes
are recorded. The operations are the same for batches of all sizes, and after each of them the live
bytes are a polynomial of the batch's size, so the tiny batches tell those of any other. Their
largest is the peak, measured within 0.01 % of a real step's. On a CPU packed rows of similar length
are padded together, but all are reckoned as if padded to the longest: steps on the 64 longest rows
took 0.75 to 0.8 of that (MiniLM). A process on a CPU takes 1.0 to 1.4 times its tensors, as its
heap has gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from automl_ft.models.packing import filled_up, padded_length

__all__ = ["BatchShape", "MemoryForecast", "MemoryProfile", "profile_of"]

_MIB = 1024 * 1024
_UNIT = 8
"""Tokens of the shortest rows that are tried."""
_EVEN = 32
"""Packed batches that are tried are multiples of so many tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """The size of a batch."""

    lengths: tuple[int, ...]
    """Tokens of each row."""
    is_packed: bool
    """Whether its rows are packed, rather than padded."""
    in_few_shapes: bool = False
    """Whether packed rows are filled up to one of a few shapes."""

    @property
    def num_tokens(self) -> int:
        """Tokens with filler or padding."""
        if not self.is_packed:
            return len(self.lengths) * max(self.lengths)
        return filled_up(sum(self.lengths), in_few_shapes=self.in_few_shapes)

    @property
    def features(self) -> tuple[float, ...]:
        """What live bytes are linear in: 1, rows, tokens, padded tokens, squares of attention.

        Attention over B rows, the longest of S tokens, works on (B, heads, S, S).
        """
        rows, longest = len(self.lengths), max(self.lengths)
        if not self.is_packed:
            return (1.0, rows, rows * longest, rows * longest, rows * longest**2)
        longest = padded_length(longest, in_few_shapes=self.in_few_shapes)
        return (1.0, rows, self.num_tokens, rows * longest, rows * longest**2)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryProfile:
    """How the live bytes of one computation follow from the size of its batch."""

    coefficients: npt.NDArray[np.float64]
    """One for each feature and operation, shape (5, num_operations), in bytes."""

    def peak_mib(self, shape: BatchShape) -> float:
        """Return the peak of a batch.

        Args:
            shape: Its size.

        Returns:
            MiB of tensors, besides those that were there before.
        """
        return max(0.0, float((np.asarray(shape.features) @ self.coefficients).max())) / _MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryForecast:
    """What a trial will take, in MiB."""

    base_mib: float
    """What is in use before: by the process on a CPU, by its tensors on a GPU."""
    weights_mib: float
    """Parameters in fp32, their copy in bf16 where there is one, and what is kept beside them."""
    optimizer_mib: float
    """AdamW's two moments, in fp32, of everything that is trained at some time."""
    training_mib: float
    """Gradients, and what a micro-batch of the longest rows leaves for its backward pass."""
    validation_mib: float
    """What a batch of the longest rows takes in validation."""
    filling_mib: float = 0.0
    """What the longest rows take while activations are computed that are to be stored; 0 where
    there are none."""
    kernels_mib: float = 0.0
    """What kernels take for themselves in a process that has not trained yet; in others it is part
    of the base."""

    @property
    def batch_mib(self) -> float:
        """What its largest batch takes: the part that is an estimate."""
        return max(self.steps_mib, self.filling_mib)

    @property
    def steps_mib(self) -> float:
        """What its largest batch takes in steps and validations."""
        return max(self.training_mib, self.validation_mib)

    @property
    def needed_mib(self) -> float:
        """What the trial adds to what is in use."""
        return self.held_mib + self.batch_mib

    @property
    def held_mib(self) -> float:
        """What the trial holds all the time."""
        return self.kernels_mib + self.weights_mib + self.optimizer_mib

    @property
    def total_mib(self) -> float:
        """The peak."""
        return self.base_mib + self.needed_mib


def profile_of(
    record: Callable[[BatchShape], Sequence[int]],
    max_length: int,
    *,
    is_packed: bool,
    in_few_shapes: bool = False,
) -> MemoryProfile:
    """Learn from tiny batches how a computation's live bytes follow from the size of its batch.

    Args:
        record: Runs a batch of a size and returns the live bytes after each operation.
        max_length: The longest row that the model takes.
        is_packed: Whether its batches are packed.
        in_few_shapes: Whether they are filled up to one of a few shapes.

    Returns:
        The profile.
    """
    shapes = [
        BatchShape(lengths=lengths, is_packed=is_packed, in_few_shapes=in_few_shapes)
        for lengths in _tiny_batches(max_length, is_packed=is_packed)
    ]
    found = [record(shape) for shape in shapes]
    if len({len(live) for live in found}) > 1:
        # Another path for another size: peaks alone are compared, whatever operation they fell on.
        found = [[max(live)] for live in found]
    features = np.asarray([shape.features for shape in shapes])
    # Padded batches cannot tell tokens from padded tokens, and need not: the least squares of the
    # smallest norm gives each a half.
    solution = np.linalg.lstsq(features, np.asarray(found, dtype=np.float64), rcond=None)
    return MemoryProfile(coefficients=solution[0])


def _tiny_batches(max_length: int, *, is_packed: bool) -> list[tuple[int, ...]]:
    """Return lengths that tell all features apart; 344 tokens at most where rows may have 32."""
    unit = max(1, min(_UNIT, max_length // 4))
    rows = _EVEN // math.gcd(unit, _EVEN)
    mixed = (4 * unit, *(rows - 1) * [unit])
    even = [rows * (unit,), 2 * rows * (unit,), rows * (2 * unit,), rows * (4 * unit,)]
    if is_packed:
        return [*even, mixed]
    # Without any padding many models make no attention mask.
    return [(*lengths[:-1], max(1, lengths[-1] - 1)) for lengths in even]
