"""Is the best trial better than the default recipe? Said out loud, with an interval.

The interval is a paired bootstrap over the validation rows (Efron & Tibshirani 1993, chapter 13;
for two systems on one test set Koehn 2004, EMNLP): both trials are scored on the same resampled
rows. It covers the luck of the rows, not that of the seed, nor that the best of many trials was
chosen on these very rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from automl_ft.metrics.classification import objective_value
from automl_ft.search.folder import StudyFolder
from automl_ft.search.ranking import best_trial, furthest_value
from automl_ft.specs.layout import LOGITS
from automl_ft.storage.records import StudyRecord, TrialRecord

__all__ = ["Verdict", "compare_with_default", "give_verdict"]

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The best trial against the default recipe."""

    best: int
    """Number of the best trial."""
    default: int
    """Number of the default recipe's trial."""
    best_value: float
    """Value of the best trial."""
    default_value: float
    """Value of the default recipe."""
    low: float | None
    """Lower end of the 95 % interval of the difference; None where scores are not kept."""
    high: float | None
    """Upper end."""
    objective: str
    """The metric."""
    paused: int | None = None
    """Number of a paused trial that is ahead of the best complete one."""
    paused_value: float | None = None
    """Its best validated value so far."""

    @property
    def difference(self) -> float:
        """Best minus default; 0 where the default recipe is the best."""
        return self.best_value - self.default_value

    @property
    def text(self) -> str:
        """The verdict in one to three sentences."""
        if self.paused is None or self.paused_value is None:
            return self._comparison
        return (
            f"{self._comparison} Trial {self.paused} is paused ahead of it at"
            f" {self.paused_value:.4f}: a larger budget finishes it."
        )

    @property
    def _comparison(self) -> str:
        if self.best == self.default:
            return (
                f"No trial beats the default recipe (trial {self.default},"
                f" {self.objective} {self.default_value:.4f})."
            )
        first = (
            f"Trial {self.best} ({self.objective} {self.best_value:.4f}) is"
            f" {self.difference:.4f} above the default recipe (trial {self.default},"
            f" {self.default_value:.4f})"
        )
        if self.low is None or self.high is None:
            return f"{first}."
        interval = f"95% interval over the validation rows {self.low:+.4f} to {self.high:+.4f}"
        if self.low > 0:
            return f"{first}; {interval}: it beats the default recipe on these rows."
        return f"{first}; {interval}: the difference may be chance."


def give_verdict(
    record: StudyRecord, trials: Sequence[TrialRecord], folder: StudyFolder
) -> Verdict | None:
    """Compare the best trial of a study with the default recipe.

    Args:
        record: The study.
        trials: Its trials.
        folder: Its folder, where trials keep their scores.

    Returns:
        The verdict; None before the default recipe and some trial are complete.
    """
    default = next((t for t in trials if t.origin == "default"), None)
    if default is None or default.state.name != "COMPLETE" or default.value is None:
        return None
    # The same recipe with a luckier seed is no better recipe.
    best = best_trial([t for t in trials if t.rerun_of != default.number])
    if best is None or best.value is None:
        return None
    low = high = None
    if best.number != default.number:
        scores = [_scores(folder.trial(n) / LOGITS) for n in (best.number, default.number)]
        targets = _targets(folder)
        if targets is not None:
            low, high = compare_with_default(record, targets, scores[0], scores[1])
    ahead = _paused_ahead(trials, best.value)
    return Verdict(
        paused=None if ahead is None else ahead.number,
        paused_value=None if ahead is None else furthest_value(ahead),
        best=best.number,
        default=default.number,
        best_value=best.value,
        default_value=default.value,
        low=low,
        high=high,
        objective=record.objective,
    )


def _paused_ahead(trials: Sequence[TrialRecord], value: float) -> TrialRecord | None:
    """Return the paused trial that is furthest ahead of the best complete one, if any."""
    known = [(furthest_value(trial), trial) for trial in trials if trial.is_paused]
    ahead = [(v, trial) for v, trial in known if v is not None and v > value]
    return max(ahead, key=lambda pair: pair[0])[1] if ahead else None


def compare_with_default(
    record: StudyRecord,
    targets: npt.NDArray[np.int64],
    best: npt.NDArray[np.float32] | None,
    default: npt.NDArray[np.float32] | None,
) -> tuple[float | None, float | None]:
    """Return the bootstrap interval of the difference.

    Args:
        record: The study; its seed makes the interval repeatable.
        targets: True classes of the validation rows, shape (num_rows,).
        best: Scores of the best trial, shape (num_rows, num_labels).
        default: Scores of the default recipe.

    Returns:
        The 2.5 and 97.5 percentiles of best minus default; None twice where shapes do not fit.
    """
    if best is None or default is None or not len(best) == len(default) == len(targets):
        return None, None
    labels = record.facts.data.labels
    positive = record.config.positive_label
    positive_id = labels.index(positive) if positive in labels else None
    predicted = [scores.argmax(axis=1) for scores in (best, default)]
    generator = np.random.default_rng(record.config.seed)
    differences = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        rows = generator.integers(0, len(targets), len(targets))
        values = [
            objective_value(record.objective, targets[rows], p[rows], len(labels), positive_id)
            for p in predicted
        ]
        differences[draw] = values[0] - values[1]
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    return float(low), float(high)


def _targets(folder: StudyFolder) -> npt.NDArray[np.int64] | None:
    """Return the classes of the validation rows; they are the same for every checkpoint."""
    for path in sorted(folder.path.glob("data/encoded/*/validation/labels.npy")):
        return _scores(path)
    return None


def _scores(path: Path) -> npt.NDArray[Any] | None:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array
