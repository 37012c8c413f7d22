"""One study in the database: everything that the search reads and writes of it.

Only the study's supervisor writes (see `StudyStore.lock`), one thread at a time; anybody may read,
and the user may end trials from Optuna Dashboard at any moment. Each method that writes is one
transaction: it happens as a whole or, whenever the process is killed, not at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import get_storage
from optuna.trial import TrialState, create_trial
from sqlalchemy import Connection

from automl_ft.config.study import StudyConfig
from automl_ft.errors import StorageError
from automl_ft.specs.facts import StudyFacts
from automl_ft.storage import ledger, optuna_rows, widening
from automl_ft.storage.checkpoints import Checkpoints
from automl_ft.storage.database import Database
from automl_ft.storage.ledger import RunRecord
from automl_ft.storage.records import (
    StudyRecord,
    TrialRecord,
    study_attrs,
)
from automl_ft.storage.schema import json_safe
from automl_ft.storage.supervision import supervise
from automl_ft.storage.trial_rows import TrialRows

__all__ = ["StudyStore"]


class StudyStore:
    """One study of ours. `StudyDatabase.load` and `.create` make it."""

    def __init__(self, database: Database, study_id: int, record: StudyRecord) -> None:
        """Store the parts.

        Args:
            database: Where the study is.
            study_id: Optuna's id of it.
            record: What it is.
        """
        self._database = database
        self._study_id = study_id
        self._record = record
        self._run_id: int | None = None
        self.checkpoints = Checkpoints(database, study_id)
        self._reopen()

    def __repr__(self) -> str:
        return f"StudyStore({self._record.name!r}, {self._database!r})"

    def _reopen(self) -> None:
        """Start with nothing read: a finished trial is never read twice."""
        self._rows = TrialRows(self._study_id)
        storage = get_storage(self._database.rdb)
        self._study = self._database.guarded(
            lambda: optuna.load_study(study_name=self._record.name, storage=storage)
        )

    @property
    def name(self) -> str:
        """The study's name."""
        return self._record.name

    @property
    def location(self) -> str:
        """The database's URL without its password."""
        return self._database.address.shown

    @property
    def record(self) -> StudyRecord:
        """What the study is, as of when it was loaded or last updated from here."""
        return self._record

    @property
    def study(self) -> optuna.Study:
        """The stored study, to be read; `ask` and `tell` are not for it.

        Take it anew after `update_record`.
        """
        return self._study

    def lock(self, folder: Path) -> AbstractContextManager[None]:
        """Become the study's supervisor for the time of a block; never waits.

        Args:
            folder: Where the study's checkpoints are.

        Returns:
            A context manager that raises StudyLockedError where another process is.
        """
        return supervise(self._database, self.name, folder)

    def trials(self) -> list[TrialRecord]:
        """Return all trials in the order of their numbers.

        Returns:
            The trials, as they are now.

        Raises:
            StorageError: The database fails.
        """
        trials = self._database.read(self._rows.all)
        if trials is None:
            raise self._is_gone()
        return trials

    def trial(self, number: int) -> TrialRecord:
        """Return one trial.

        Args:
            number: Its number.

        Returns:
            The trial, as it is now.

        Raises:
            KeyError: There is no such trial.
            StorageError: The database fails.
        """
        return self._database.read(lambda connection: self._rows.one(connection, number))

    def add_trial(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        state: TrialState = TrialState.WAITING,
        attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a configuration.

        Args:
            params: What was sampled.
            distributions: From what, by the same names.
            state: WAITING, or RUNNING where it starts at once.
            attrs: User attributes (see `records.new_trial_attrs`).
            system_attrs: System attributes.

        Returns:
            The new trial's number.

        Raises:
            ValueError: Parameters and distributions do not fit, or a distribution is not
                compatible with the stored one.
            StorageError: The database fails.
        """
        template = create_trial(
            state=state,
            value=None,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=json_safe(attrs or {}),
            system_attrs=json_safe(system_attrs or {}),
        )

        def create(connection: Connection) -> int:
            self._hold_study(connection)
            return optuna_rows.add_trial(connection, self._study_id, template)

        return self._database.write(create)

    def claim(self, number: int) -> bool:
        """Take a waiting trial: WAITING becomes RUNNING.

        Args:
            number: The trial.

        Returns:
            False if it is not waiting, for instance because another one took it.

        Raises:
            KeyError: There is no such trial.
            StorageError: The database fails.
        """
        return self._move(number, TrialState.WAITING, TrialState.RUNNING)

    def release(self, number: int) -> bool:
        """Pause a running trial: RUNNING becomes WAITING, its parameters and curve stay.

        Args:
            number: The trial.

        Returns:
            False if it is not running, for instance because the user ended it.

        Raises:
            KeyError: There is no such trial.
            StorageError: The database fails.
        """
        return self._move(number, TrialState.RUNNING, TrialState.WAITING)

    def report(self, number: int, step: int, value: float) -> None:
        """Write one point of a trial's curve.

        Args:
            number: The trial.
            step: Where on the study's axis; an earlier value there is replaced.
            value: The objective; NaN and infinities are kept.

        Raises:
            UpdateFinishedTrialError: The trial is finished; the user may have ended it.
            KeyError: There is no such trial.
            StorageError: The database fails.
        """

        def write(connection: Connection, trial_id: int) -> None:
            optuna_rows.put_intermediate_value(connection, trial_id, step, value)

        self._write_open(number, write)

    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Write user attributes of a trial.

        Args:
            number: The trial.
            attrs: JSON values by key (see `records.result_attrs`).

        Raises:
            UpdateFinishedTrialError: The trial is finished.
            KeyError: There is no such trial.
            StorageError: The database fails.
        """
        self._write_open(number, lambda c, i: optuna_rows.put_trial_attrs(c, i, attrs))

    def set_params(
        self,
        number: int,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Give its parameters to a trial that waits without them, or with others.

        Args:
            number: The trial.
            params: Its configuration; all that it has already is replaced.
            distributions: From what, by the same names at least.
            attrs: User attributes to be written with it.

        Raises:
            UpdateFinishedTrialError: The trial is finished.
            ValueError: A distribution is not compatible with the stored one.
            KeyError: There is no such trial.
            StorageError: The database fails.
        """

        def write(connection: Connection, trial_id: int) -> None:
            optuna_rows.put_params(connection, trial_id, params, distributions)
            optuna_rows.put_trial_attrs(connection, trial_id, attrs or {})

        self._write_open(number, write)

    def set_system_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Write system attributes of a trial.

        Args:
            number: The trial.
            attrs: JSON values by key.

        Raises:
            UpdateFinishedTrialError: The trial is finished.
            KeyError: There is no such trial.
            StorageError: The database fails.
        """
        self._write_open(
            number, lambda c, i: optuna_rows.put_trial_attrs(c, i, attrs, kind="system")
        )

    def finish(
        self,
        number: int,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a trial for good.

        Args:
            number: The trial.
            state: COMPLETE, PRUNED or FAIL.
            value: Its objective; needed for COMPLETE. NaN counts as none.
            attrs: User attributes to be written with it.

        Returns:
            False if it was finished already: the user ended it. Then nothing is written.

        Raises:
            ValueError: The state is not a finished one, or COMPLETE has no value.
            KeyError: There is no such trial.
            StorageError: The database fails.
        """
        has_value = value is not None and not math.isnan(value)
        if not state.is_finished() or (state is TrialState.COMPLETE and not has_value):
            raise ValueError(f"Trial {number} cannot end as {state.name} with value {value}.")
        trial_id = self._trial_id(number)

        def write(connection: Connection) -> bool:
            if not optuna_rows.move(connection, trial_id, optuna_rows.OPEN_STATES, state):
                return False
            if value is not None and has_value:
                optuna_rows.put_value(connection, trial_id, value)
            optuna_rows.put_trial_attrs(connection, trial_id, attrs or {})
            return True

        return self._database.write(write)

    def recover_stale(self) -> list[int]:
        """Put trials back in line that a killed supervisor left running.

        Call it only under the study's lock: it takes every RUNNING trial for a stale one.

        Returns:
            Their numbers; they are WAITING now, with parameters and curve.

        Raises:
            StorageError: The database fails.
        """

        def write(connection: Connection) -> list[int]:
            self._hold_study(connection)
            return optuna_rows.release_running(connection, self._study_id)

        return self._database.write(write)

    def start_run(self) -> None:
        """Open a run of the supervisor in the cost ledger.

        Raises:
            StorageError: The database fails.
        """
        self._run_id = self._database.write(lambda c: ledger.start_run(c, self._study_id))

    def touch_run(self, active_seconds: float) -> None:
        """Tell how long this run has been working; a killed run counts up to here.

        Args:
            active_seconds: Seconds since `start_run`.

        Raises:
            StorageError: The database fails.
        """
        run_id = self._run_id
        assert run_id is not None, "start_run comes first"
        self._database.write(lambda c: ledger.touch_run(c, run_id, active_seconds))

    def end_run(self, reason: str) -> None:
        """Close this run.

        Args:
            reason: Why it ended, in a few words.

        Raises:
            StorageError: The database fails.
        """
        run_id = self._run_id
        assert run_id is not None, "start_run comes first"
        self._database.write(lambda c: ledger.end_run(c, run_id, reason))
        self._run_id = None

    def runs(self) -> list[RunRecord]:
        """Return all runs of the study, oldest first.

        Returns:
            The cost ledger.

        Raises:
            StorageError: The database fails.
        """
        return self._database.read(lambda c: ledger.runs(c, self._study_id))

    def active_seconds(self) -> float:
        """Return how long all runs have been working together.

        Returns:
            Seconds; this run counts up to its last `touch_run`.

        Raises:
            StorageError: The database fails.
        """
        return self._database.read(lambda c: ledger.active_seconds(c, self._study_id))

    def update_record(
        self,
        *,
        config: StudyConfig | None = None,
        space: Mapping[str, Any] | None = None,
        stored_space: Mapping[str, Any] | None = None,
        facts: StudyFacts | None = None,
        origins: Mapping[str, str] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> dict[str, BaseDistribution]:
        """Change what the study is, and widen the stored distributions, in one transaction.

        Args:
            config: The new configuration; None keeps the old one.
            space: The new search space; None keeps the old one.
            stored_space: The new union of all spaces; None keeps the old one.
            facts: The new facts, where the space grew by a checkpoint; None keeps the old ones.
            origins: The new origins of settings; None keeps the old ones.
            distributions: What stored trials' parameters shall be widened to, by name.

        Returns:
            By name the distribution that all trials have now, and new ones should have.

        Raises:
            StudyExistsError: A distribution cannot grow into the new one; nothing is changed.
            StorageError: The database fails.
        """
        old = self._record
        record = dataclasses.replace(
            old,
            config=old.config if config is None else dataclasses.replace(config, storage=None),
            space=old.space if space is None else space,
            stored_space=old.stored_space if stored_space is None else stored_space,
            facts=old.facts if facts is None else facts,
            origins=old.origins if origins is None else origins,
        )

        def write(connection: Connection) -> dict[str, BaseDistribution]:
            self._hold_study(connection)
            widened = widening.widen_stored(connection, self._study_id, distributions or {})
            if record != old:
                optuna_rows.put_study_attrs(connection, self._study_id, study_attrs(record))
            return widened

        widened = self._database.write(write)
        self._record = record
        if widened:
            self._reopen()
        return widened

    def _trial_id(self, number: int) -> int:
        known = self._rows.known_id(number)
        if known is not None:
            return known
        return self._database.read(lambda connection: self._rows.id_of(connection, number))

    def _move(self, number: int, source: TrialState, target: TrialState) -> bool:
        trial_id = self._trial_id(number)
        return self._database.write(lambda c: optuna_rows.move(c, trial_id, (source,), target))

    def _write_open(self, number: int, action: Callable[[Connection, int], None]) -> None:
        """Write to a trial that is not finished."""
        trial_id = self._trial_id(number)

        def write(connection: Connection) -> bool:
            is_open = optuna_rows.hold(connection, trial_id)
            if is_open:
                action(connection, trial_id)
            return is_open

        if not self._database.write(write):
            raise UpdateFinishedTrialError(
                f"Trial {number} of study `{self.name}` is finished and cannot be changed."
            )

    def _hold_study(self, connection: Connection) -> None:
        if not optuna_rows.hold_study(connection, self._study_id):
            raise self._is_gone()

    def _is_gone(self) -> StorageError:
        return StorageError(
            f"Study `{self.name}` is no longer in {self._database.address}: it was deleted"
            " in the meantime."
        )
