"""One search from start to end: open the study, run the engine, leave everything tidy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from automl_ft.config.load import default_name, settings_of
from automl_ft.config.study import StudyConfig
from automl_ft.models.bundled import BUNDLED_MODELS
from automl_ft.search.checkpoints import Shelf
from automl_ft.search.engine import Engine, EngineParts
from automl_ft.search.events import SearchListener, SilentListener, StopReason
from automl_ft.search.interrupt import Interrupt, catch_signals
from automl_ft.search.opening import OpenedStudy, open_study, store_changes
from automl_ft.search.pruners import PrunerSettings, make_pruner
from automl_ft.search.samplers import startup_trials
from automl_ft.search.shadow import ShadowStudy
from automl_ft.search.stopping import ActiveClock, stop_proposing
from automl_ft.search.team import InterruptedSetUpError, Team, WorkerFactory, start_process
from automl_ft.search.trials import may_start
from automl_ft.space.spec import CategoricalParam, Fixed, IntParam, SearchSpace
from automl_ft.specs.hyperparameters import HYPERPARAMETERS
from automl_ft.specs.validation import first_validation_step, resolved_validations

__all__ = ["SearchOutcome", "run_search"]

_TRIALS_EACH = 4
"""Trials that are left for each worker of `workers: auto` at least: with fewer, most configurations
would be proposed before any is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOutcome:
    """How a search ended."""

    study_name: str
    """The study."""
    stop_reason: StopReason
    """Why it ended."""
    storage: str | None
    """The database's URL without its password; None if it ended before there was a study."""
    folder: Path | None
    """The study's folder; None if it ended before there was a study."""


def run_search(
    config: StudyConfig,
    *,
    origins: Mapping[str, str] | None = None,
    listener: SearchListener | None = None,
    factory: WorkerFactory = start_process,
) -> SearchOutcome:
    """Create or resume a study and search until a budget or the user ends it.

    The first SIGINT or SIGTERM pauses the running trials and ends the search; the second raises
    KeyboardInterrupt at once. Either way a rerun goes on.

    Args:
        config: What is asked for; without a name it gets one of its model and data.
        origins: Where each setting came from, to be stored; None says that a program gave them.
        listener: Told of everything; None for silence.
        factory: Starts workers.

    Returns:
        How it ended.

    Raises:
        UsageError: Anything is wrong with the input; then nothing was created.
        SearchFailedError: The search could not go on.
        KeyboardInterrupt: The user interrupted twice.
    """
    started = time.monotonic()
    if config.name is None:
        config = dataclasses.replace(config, name=default_name(config))
    config = _with_absolute_model(config)
    origins = dict.fromkeys(settings_of(config), "program") if origins is None else origins
    listener = listener or SilentListener()
    interrupt = Interrupt()
    with catch_signals(interrupt):
        team = Team(factory, interrupt)
        try:
            outcome = _search(config, origins, team, listener, started)
            team.close(at_once=outcome.folder is None)
        except BaseException:
            team.close(at_once=True)
            raise
    return outcome


def _with_absolute_model(config: StudyConfig) -> StudyConfig:
    """Spell a model's folder so that it is found from any working directory."""
    checkpoint = config.model.checkpoint
    folder = Path(checkpoint).expanduser()
    if checkpoint in BUNDLED_MODELS or not folder.is_dir():
        return config
    model = dataclasses.replace(config.model, checkpoint=str(folder.absolute().resolve()))
    return dataclasses.replace(config, model=model)


def _search(
    config: StudyConfig,
    origins: Mapping[str, str],
    team: Team,
    listener: SearchListener,
    started: float,
) -> SearchOutcome:
    with ExitStack() as held:
        try:
            opened = open_study(config, origins, team, listener, held)
        except InterruptedSetUpError:
            return SearchOutcome(
                study_name=str(config.name),
                stop_reason=StopReason.INTERRUPTED,
                storage=None,
                folder=None,
            )
        try:
            return _supervise(opened, origins, team, listener, started)
        except BaseException:
            team.close(at_once=True)  # under the lock: nobody else may touch their folders yet
            raise


def _supervise(
    opened: OpenedStudy,
    origins: Mapping[str, str],
    team: Team,
    listener: SearchListener,
    started: float,
) -> SearchOutcome:
    """Run the engine as the study's one supervisor, and close the ledger whatever happens."""
    store = opened.store
    opened.folder.claim(store.name, store.record.created_at.isoformat())
    if opened.is_resumed:
        store_changes(opened, origins)
    store.recover_stale()
    Shelf(store, opened.folder, opened.config).sweep()
    if (reached := _already_reached(opened)) is not None:
        return _outcome(opened, reached)
    clock = ActiveClock(earlier_seconds=store.active_seconds(), started=started)
    store.start_run()
    reason = "failed"
    try:
        stop = _run_engine(opened, team, listener, clock)
        reason = stop.value
    except KeyboardInterrupt:
        reason = "left at once"
        raise
    finally:
        store.touch_run(clock.this_run())
        store.end_run(reason)
    return _outcome(opened, stop)


def _already_reached(opened: OpenedStudy) -> StopReason | None:
    """Say why a rerun has nothing to do: no trial waits, and no further one is wanted."""
    trials = opened.store.trials()
    budget = opened.config.budget
    waiting = [trial for trial in trials if not trial.is_finished]
    if not opened.is_resumed or any(may_start(trial, trials, budget) for trial in waiting):
        return None
    return stop_proposing(trials, budget)


def _outcome(opened: OpenedStudy, stop: StopReason) -> SearchOutcome:
    return SearchOutcome(
        study_name=opened.store.name,
        stop_reason=stop,
        storage=opened.store.location,
        folder=opened.folder.path,
    )


def _run_engine(
    opened: OpenedStudy, team: Team, listener: SearchListener, clock: ActiveClock
) -> StopReason:
    config = opened.config
    listener.prepared(opened.facts, is_resumed=opened.is_resumed)
    try:
        config = _with_counted_workers(opened, team, listener)
        listener.preparing("opening the workers")
        workers = team.open(config, opened.facts, opened.folder)
    except InterruptedSetUpError:
        return StopReason.INTERRUPTED
    train = opened.facts.data.num_examples["train"]
    per_epoch = resolved_validations(config.training.validations_per_epoch, opened.facts)
    settings = PrunerSettings(
        min_resource=first_validation_step(train, per_epoch),
        max_resource=train * _most_epochs(opened.space),
    )
    parts = EngineParts(
        opened=opened,
        team=team,
        shadow=ShadowStudy(
            space=opened.space,
            stored_space=opened.stored_space,
            sampler=config.sampler,
            seed=config.seed,
            study_name=opened.store.name,
            n_startup_trials=startup_trials(config.budget.trials),
        ),
        pruner=make_pruner(config.pruner, settings),
        clock=clock,
        listener=listener,
        interrupt=team.interrupt,
    )
    return Engine(parts).run(workers)


def _with_counted_workers(opened: OpenedStudy, team: Team, listener: SearchListener) -> StudyConfig:
    """Replace `workers: auto` by the number that it comes to on this machine."""
    config = opened.config
    if config.workers != "auto":
        return config
    num_finished = sum(trial.is_finished for trial in opened.store.trials())
    most = (config.budget.trials - num_finished) // _TRIALS_EACH
    if most < 2:
        listener.message("`workers: auto`: 1 trial at a time, as few are left.")
        return dataclasses.replace(config, workers=1)
    listener.preparing("timing how many trials at once are fastest")
    count = team.count(most)
    why = ", as more would hardly be faster" if count == 1 else ""
    listener.message(f"`workers: auto`: {count} trial{'s' * (count > 1)} at a time{why}.")
    return dataclasses.replace(config, workers=count)


def _most_epochs(space: SearchSpace) -> int:
    """Return the epochs of the longest trial that a space allows."""
    param = space.find("epochs")
    if isinstance(param, IntParam):
        return param.bounds[1]
    values: tuple[object, ...] = ()
    if isinstance(param, CategoricalParam):
        values = param.choices
    elif isinstance(param, Fixed):
        values = (param.value,)
    else:
        values = (HYPERPARAMETERS["epochs"].default,)
    return max((value for value in values if isinstance(value, int)), default=1)
