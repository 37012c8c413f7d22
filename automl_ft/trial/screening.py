"""How is the validation split scored at the speed of bf16, with the classes that fp32 gives?

All rows are scored in bf16 first, by the copy of the model that training computes with. Those whose
class is in doubt, because their two best scores are closer than bf16 can tell apart, are scored
again in fp32. How close that is, the rows that were scored twice show, with so much to spare that
another class than that of fp32 is rare (docs/experiments.md: none in most measurements, one in
18,000 rows of a tiny model with large weights). So metrics of classes are those of fp32, which is
what an exported model gives; the loss holds scores in bf16. Where training computes in fp32, or
where stored states leave nothing but the head to compute, all is scored in fp32.

Of frozen blocks what leads up to scores in fp32 could be stored. So few rows need them that a trial
seldom pays for it, but the trials of a study do: as soon as rows have passed through as many blocks
as storing all rows takes, it is done (to rent until what was paid would have bought: at most twice
the least cost; Karlin et al. 1988, "Competitive snoopy caching").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from automl_ft.models.freezing import FreezingPlan
from automl_ft.specs.validation import IN_DOUBT, LEAST_IN_DOUBT
from automl_ft.trial.forward import Forward

__all__ = ["Screening", "settle_doubts"]

_SAFETY = 4.0
"""Rows count as certain from this multiple of the largest error seen on."""
_LEAST_ERROR = 2.0**-8
"""An error that is reckoned with in any case, of the largest difference between two scores of a
row, for few rows may happen to err little: one rounding to bf16, which has 8 bits. Measured with
MiniLM on four data sets (docs/experiments.md): 0.004 to 0.024 of it at most in a split; classes
changed where scores were closer than 0.7 of the largest error, if at all."""


@dataclass(kw_only=True, slots=True, eq=False)
class Screening:
    """Scores of the validation split; a `parts.Scorer`. A stage is entered before it scores."""

    exact: Forward
    """In fp32."""
    rough: Forward | None = None
    """In the precision of training, by the copy that computes; None where that is fp32 too."""
    fp32_passes: dict[int, float] = field(default_factory=dict)
    """By number of frozen blocks how often the rows passed through them to be scored again, in all
    trials of this process."""
    is_rough: bool = field(default=False, init=False)
    """Whether rows are scored roughly first in the stage that was entered."""
    _depth: int = field(default=-1, init=False)
    """Frozen blocks, where not all of their states are stored in fp32; -1 elsewhere."""
    _missing: float = field(default=0.0, init=False)
    """Share of these blocks that rows pass through to be scored again."""

    def enter(self, plan: FreezingPlan, stage: int, *, num_passes: float) -> None:
        """Take the stored activations of a stage, if it is a new one.

        Args:
            plan: The freezing plan.
            stage: Its stage.
            num_passes: How often the stage reads each row.
        """
        if stage == self.exact.stage:
            return
        if self.rough is None:
            self.exact.enter(plan, stage, num_passes=num_passes)
            return
        heads = {s for s in range(plan.num_stages) if self.exact.reads_pooled(plan, s)}
        depth, self._depth = self.exact.boundary(plan, stage), -1
        if heads:
            self.exact.enter(plan, stage, num_passes=num_passes, stages=heads)
        else:
            paid = self.fp32_passes.get(depth, 0.0)
            self.exact.enter(plan, stage, num_passes=paid + IN_DOUBT * num_passes)
            begin = self.exact.activations
            lowest = 0 if begin is None else begin.num_blocks
            if lowest < depth:
                self._depth, self._missing = depth, 1 - lowest / depth
        stored = self.exact.activations
        self.is_rough = stored is None or not stored.is_pooled
        if self.is_rough:
            others = set(range(plan.num_stages)) - heads
            self.rough.enter(plan, stage, num_passes=num_passes, stages=others)

    def all_scores(self, batch_size: int) -> npt.NDArray[np.float32]:
        """Compute the scores of all rows.

        Args:
            batch_size: Rows at once.

        Returns:
            Scores in the order of the rows, shape (num_rows, num_labels): in fp32 for the rows that
            were scored again, elsewhere with the error of bf16, but with the largest score where
            fp32 has it.
        """
        if self.rough is None or not self.is_rough:
            return self.exact.all_scores(batch_size)
        self.rough.view.model.eval()  # type: ignore[no-untyped-call]
        scores = self.rough.all_scores(batch_size)

        def score_again(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            if self._depth > 0:
                passed = self._missing * len(rows) / len(scores)
                self.fp32_passes[self._depth] = self.fp32_passes.get(self._depth, 0.0) + passed
            return self.exact.scores_of(rows, batch_size)

        settle_doubts(scores, score_again)
        return scores


def settle_doubts(
    scores: npt.NDArray[np.float32],
    score_again: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]],
) -> None:
    """Replace the scores of rows whose class is in doubt, until there are none.

    Args:
        scores: Rough scores, shape (num_rows, num_labels); changed in place.
        score_again: Gives from row numbers, shape (B,), their exact scores, (B, num_labels).
    """
    if scores.shape[1] < 2:  # there is no class to be in doubt of
        scores[:] = score_again(np.arange(len(scores)))
        return
    if not np.isfinite(scores).all():  # bf16 failed on some: none of its scores are trusted
        scores[:] = score_again(np.arange(len(scores)))
        return
    margins = _margins(scores)
    error = _LEAST_ERROR * float(np.ptp(scores, axis=1).max())
    is_exact = np.zeros(len(scores), dtype=bool)
    wanted = _first_rows(margins)
    while wanted.any():
        rows = np.flatnonzero(wanted)
        exact = score_again(rows)
        error = max(error, _largest_shift(scores[rows], exact))
        scores[rows], is_exact[rows] = exact, True
        wanted = (margins <= _SAFETY * error) & ~is_exact


def _first_rows(margins: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which rows are scored again in any case, to see the error of bf16, shape (num_rows,).

    Half of them have the smallest margins, half come from all margins alike, as the error grows
    with the scores.
    """
    order = np.argsort(margins, kind="stable")
    spread = np.linspace(0, len(order) - 1, min(LEAST_IN_DOUBT // 2, len(order))).astype(np.int64)
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: LEAST_IN_DOUBT // 2]] = True
    chosen[order[spread]] = True
    return chosen


def _margins(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return by how much the best score of each row leads, shape (num_rows,)."""
    best = np.partition(scores, -2, axis=1)[:, -2:]
    margins: npt.NDArray[np.float32] = best[:, 1] - best[:, 0]
    return margins


def _largest_shift(rough: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]) -> float:
    """Return the most by which the lead of a row's best rough score over another one is off.

    Only an error of that much or more can give a row another class.
    """
    best = rough.argmax(axis=1)[:, None]
    with np.errstate(invalid="ignore"):
        errors = rough - exact
        shifts = np.abs(np.take_along_axis(errors, best, axis=1) - errors)
    largest = float(shifts.max())
    return largest if np.isfinite(largest) else float("inf")
