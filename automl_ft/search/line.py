"""Which trials run next, and which of them together? Those in line, then what the sampler proposes.

Every proposal is put in line first and claimed with its whole group, so that a kill at any moment
loses none: the next run finds it in line and forms the same group.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from automl_ft.errors import ConfigError
from automl_ft.search.events import SearchListener, StopReason
from automl_ft.search.opening import OpenedStudy
from automl_ft.search.shadow import ShadowStudy
from automl_ft.search.stopping import num_configurations, patience_left, stop_proposing
from automl_ft.search.trials import (
    Shadows,
    add_proposal,
    adopt_foreign,
    failed_result,
    invalid_message,
    may_start,
)
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.grouping import MAX_STACKED, stack_key
from automl_ft.specs.layout import LAST
from automl_ft.storage.records import TrialRecord, result_attrs

__all__ = ["Line", "group_room"]

_LEARN_NOTHING = ("random", "qmc", "grid")
_START_BY_CHANCE = ("tpe", "gp")


def group_room(shadow: ShadowStudy, num_known: int) -> int:
    """Return how large a group may grow by proposals.

    The trials of a group are proposed without each other's results. That costs nothing where the
    sampler does not learn or is still drawing by chance. Later a group is at most a quarter of
    what is known, so that each proposal is made with at least four fifths of the results that it
    would have been made with one by one; two are allowed at any time, as with two workers. The
    running ones keep the sampler away from their places (constant liar).

    Args:
        shadow: Its sampler and the length of its start-up phase.
        num_known: Configurations before the group.

    Returns:
        A number of trials from 2 to `MAX_STACKED`.
    """
    if shadow.sampler in _LEARN_NOTHING:
        return MAX_STACKED
    by_chance = shadow.n_startup_trials - num_known if shadow.sampler in _START_BY_CHANCE else 0
    return min(MAX_STACKED, max(2, num_known // 4, by_chance))


class Line:
    """The trials that wait, and behind them those that the sampler would propose."""

    def __init__(
        self,
        opened: OpenedStudy,
        shadow: ShadowStudy,
        shadows: Shadows,
        listener: SearchListener,
    ) -> None:
        """Store the parts.

        Args:
            opened: The study.
            shadow: Proposes.
            shadows: What it sees of the trials.
            listener: Told of trials that cannot run.
        """
        self.reason: StopReason | None = None
        """Why `next_group` found no trial the last time; None where it found some."""
        self._opened = opened
        self._store = opened.store
        self._budget = opened.config.budget
        self._shadow = shadow
        self._shadows = shadows
        self._listener = listener

    def next_group(self, alone: Container[int] = ()) -> list[TrialRecord]:
        """Claim what an idle worker runs next.

        Paused trials come first, then those that were put in line, then proposals.

        Args:
            alone: Trials that share a worker with no other one.

        Returns:
            Trials, RUNNING now, that are trained together; mostly one, none where `reason` says
            why.
        """
        self.reason = None
        while group := self._form(alone):
            claimed = {trial.number for trial in group if self._store.claim(trial.number)}
            if claimed:
                trials = {trial.number: trial for trial in self._store.trials()}
                return [trials[trial.number] for trial in group if trial.number in claimed]
        return []

    def _form(self, alone: Container[int]) -> list[TrialRecord]:
        """Find or propose trials that are trained together; all are in line."""
        waiting = self._waiting()
        if not waiting:
            proposed = self._propose()
            if isinstance(proposed, StopReason):
                self.reason = proposed
                return []
            waiting = [proposed]
        leader = waiting[0]
        key = self._key(leader, alone)
        if key is None:
            return [leader]
        group = [trial for trial in waiting if self._key(trial, alone) == key][:MAX_STACKED]
        # Nothing is proposed while something else waits. A leader that was begun before has lost
        # a part of its group, which was complete: the sampler shall wait for it now as then.
        if leader.started is None and len(group) == len(waiting):
            self._fill_up(group, key)
        return group

    def _fill_up(self, group: list[TrialRecord], key: object) -> None:
        """Add proposals; the first that does not fit ends the group and stays next in line."""
        trials = self._store.trials()
        room = group_room(self._shadow, num_configurations(trials[: group[0].number]))
        patience = patience_left(trials, self._budget)
        if patience is not None:
            room = min(room, patience)
        for _ in range(room - len(group)):
            proposed = self._propose()
            if isinstance(proposed, StopReason) or self._key(proposed, ()) != key:
                return
            group.append(proposed)

    def _waiting(self) -> list[TrialRecord]:
        """Return the trials in line that may run, paused ones first."""
        trials = self._adopted(self._store.trials())
        waiting = [
            trial
            for trial in trials
            if trial.state is TrialState.WAITING and may_start(trial, trials, self._budget)
        ]
        return sorted(waiting, key=lambda trial: (not trial.is_paused, trial.number))

    def _propose(self) -> TrialRecord | StopReason:
        """Put a proposal in line, or say why there is none."""
        trials = self._store.trials()
        reason = stop_proposing(trials, self._budget)
        if reason is not None:
            return reason
        proposal = self._shadow.propose(self._shadows.of(trials))
        if proposal is None:
            return StopReason.EXHAUSTED
        return self._store.trial(add_proposal(self._store, self._opened.space, proposal))

    def _key(self, trial: TrialRecord, alone: Container[int]) -> object | None:
        """Return what a trial must share with others of its group; None if it runs alone."""
        checkpoint = self._opened.folder.trial(trial.number) / LAST
        is_begun = bool(trial.intermediate_values) or checkpoint.exists()
        if is_begun or trial.number in alone or not self._can_stack(trial):
            return None
        return stack_key(trial.hyperparameters)

    def _can_stack(self, trial: TrialRecord) -> bool:
        """Tell whether a group would be trained together, and not one by one in one worker."""
        config, facts = self._opened.config, self._opened.facts
        name = trial.hyperparameters.get("model") or config.model.checkpoint
        known = {checkpoint.checkpoint: checkpoint for checkpoint in facts.checkpoints}
        can_stack = name not in known or known[str(name)].can_stack
        return can_stack and config.training.activation_cache_gib > 0

    def _adopted(self, trials: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
        """Complete the trials that plain Optuna put in line, or fail them."""
        foreign = [t for t in trials if t.state is TrialState.WAITING and not t.hyperparameters]
        for trial in foreign:
            try:
                adopt_foreign(self._store, self._opened.space, trial)
            except UpdateFinishedTrialError:
                continue  # the user ended it this moment
            except (ConfigError, ValueError) as error:
                self._refuse(trial, invalid_message(error))
        return self._store.trials() if foreign else trials

    def _refuse(self, trial: TrialRecord, message: str) -> None:
        failure = TrialFailure(kind=FailureKind.ERROR, message=message)
        attrs = result_attrs(failed_result(trial.number, failure))
        self._store.finish(trial.number, TrialState.FAIL, None, attrs)
        self._listener.message(f"Trial {trial.number} cannot run: {message}")
