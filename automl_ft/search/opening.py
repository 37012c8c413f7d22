"""How is a study opened: created when it is new, checked and gone on with when it is not?

space file -> worker reads data and models (nothing is written) -> facts
  new study:   folder free? -> create in the database -> lock -> keep the data
  old study:   lock -> same data, model, objective, task? -> space may grow -> go on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from automl_ft.config.study import StudyConfig
from automl_ft.errors import NoStudiesError, StudyNotFoundError
from automl_ft.search.events import SearchListener
from automl_ft.search.folder import StudyFolder, check_creatable, study_folder
from automl_ft.search.resume import check_resumable, stored_precision
from automl_ft.search.team import Team
from automl_ft.search.trials import put_default_recipe
from automl_ft.space.growth import merge
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.space.spec import CategoricalParam, Fixed, SearchSpace
from automl_ft.space.suggest import stored_distributions
from automl_ft.specs.facts import CheckpointFacts, StudyFacts
from automl_ft.specs.validation import resolved_validations
from automl_ft.storage.records import StudyRecord
from automl_ft.storage.store import StudyStore
from automl_ft.storage.studies import StudyDatabase, open_database
from automl_ft.storage.urls import parse_url, resolve_url

__all__ = ["OpenedStudy", "open_study", "store_changes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedStudy:
    """A study, ready to be searched."""

    store: StudyStore
    """The study in the database."""
    config: StudyConfig
    """What is asked for now; its `name`, `output` and `storage` are those of the study."""
    facts: StudyFacts
    """What preparing it found out."""
    space: SearchSpace
    """What is proposed; resolved."""
    stored_space: SearchSpace
    """What the study stores: the union of `space` with earlier ones."""
    folder: StudyFolder
    """Where its files lie."""
    is_resumed: bool
    """Whether it existed before."""


def open_study(
    config: StudyConfig,
    origins: Mapping[str, str],
    team: Team,
    listener: SearchListener,
    held: ExitStack,
) -> OpenedStudy:
    """Create a study, or check that an existing one may go on, and become its supervisor.

    Args:
        config: What is asked for; it has a name.
        origins: Where each setting came from.
        team: A worker of it reads data and models.
        listener: Told what is being done.
        held: Gets what is to be released when the search ends: the database and the lock.

    Returns:
        The study; its workers are not open yet.

    Raises:
        UsageError: Anything is wrong with space, data, model, database or an existing study;
            then nothing was created.
    """
    loaded = load_space(config.space)
    database = _existing_database(config)
    if database is not None:
        held.callback(database.close)
    existing = _existing_study(database, str(config.name))
    record = None if existing is None else existing.record
    folder = study_folder(config, record)
    folder.check_apart(str(config.name), parse_url(resolve_url(config.storage)).file)
    folder.check_free(str(config.name), None if record is None else _mark(record))
    if existing is not None:  # before the data is read, which may take long
        held.enter_context(existing.lock(folder.path))
    listener.preparing("reading data and model")
    facts = team.prepare(
        config,
        _checkpoints(config, loaded),
        None if record is None else folder.path,
        None if record is None else record.facts,
    )
    space = resolve(loaded, {"num_layers": facts.num_layers})
    config = dataclasses.replace(config, output=str(folder.path))
    if existing is not None:
        return _resume(existing, config, facts, space, folder)
    if database is None:
        database = open_database(config.storage, create=True)
        held.callback(database.close)
    opened = _create(database, config, origins, facts, space)
    held.enter_context(opened.store.lock(folder.path))
    return opened


def _existing_database(config: StudyConfig) -> StudyDatabase | None:
    """Return the database, creating nothing; None if it is yet to be created."""
    try:
        return open_database(config.storage)
    except NoStudiesError:
        file = parse_url(resolve_url(config.storage)).file
        if file is not None:
            check_creatable(file.parent, f"The folder of the database `{file}`", "--storage")
        return None


def _existing_study(database: StudyDatabase | None, name: str) -> StudyStore | None:
    if database is None:
        return None
    try:
        return database.load(name)
    except StudyNotFoundError:
        return None


def _checkpoints(config: StudyConfig, space: SearchSpace) -> tuple[str, ...]:
    param = space.find("model")
    if isinstance(param, CategoricalParam):
        return tuple(str(choice) for choice in param.choices)
    if isinstance(param, Fixed) and param.value is not None:
        return (str(param.value),)
    return (config.model.checkpoint,)


def _create(
    database: StudyDatabase,
    config: StudyConfig,
    origins: Mapping[str, str],
    facts: StudyFacts,
    space: SearchSpace,
) -> OpenedStudy:
    record = StudyRecord(
        name=str(config.name),
        config=config,
        facts=facts,
        space=space.to_plain(),
        objective=config.objective,
        created_at=datetime.now(UTC),
        origins=origins,
    )
    store = database.create(record)
    put_default_recipe(store)
    return OpenedStudy(
        store=store,
        config=config,
        facts=facts,
        space=space,
        stored_space=space,
        folder=study_folder(config, record),
        is_resumed=False,
    )


def _resume(
    store: StudyStore,
    config: StudyConfig,
    facts: StudyFacts,
    space: SearchSpace,
    folder: StudyFolder,
) -> OpenedStudy:
    record = store.record
    check_resumable(record, config, facts, space)
    validations = record.config.training.validations_per_epoch
    return OpenedStudy(
        store=store,
        config=config,
        facts=dataclasses.replace(
            facts,
            checkpoints=_all_checkpoints(record.facts, facts),
            precision=stored_precision(record),
            # `auto` may come to another number now, as where a further model is searched; the
            # trials of a study validate at the same steps.
            validations_per_epoch=resolved_validations(validations, record.facts),
        ),
        space=space,
        stored_space=merge(SearchSpace.from_plain(record.stored_space), space),
        folder=folder,
        is_resumed=True,
    )


def _all_checkpoints(old: StudyFacts, new: StudyFacts) -> tuple[CheckpointFacts, ...]:
    current = {facts.checkpoint for facts in new.checkpoints}
    # What was measured when the study was made holds for all of its trials.
    before = {facts.checkpoint: facts for facts in old.checkpoints}
    known = tuple(
        dataclasses.replace(
            facts,
            batching=before[facts.checkpoint].batching,
            cuda_graphs=before[facts.checkpoint].cuda_graphs,
        )
        if facts.checkpoint in before
        else facts
        for facts in new.checkpoints
    )
    return known + tuple(f for f in old.checkpoints if f.checkpoint not in current)


def store_changes(opened: OpenedStudy, origins: Mapping[str, str]) -> None:
    """Store what a rerun changed: budget, sampler, pruner, a grown space. Needs the lock.

    A default recipe that has not begun becomes the one of the space of today.

    Args:
        opened: The study.
        origins: Where each setting came from.

    Raises:
        StudyExistsError: A stored distribution cannot grow; nothing is changed.
    """
    opened.store.update_record(
        config=opened.config,
        space=opened.space.to_plain(),
        stored_space=opened.stored_space.to_plain(),
        facts=opened.facts,
        origins=origins,
        distributions=stored_distributions(opened.stored_space),
    )
    put_default_recipe(opened.store)


def _mark(record: StudyRecord) -> str:
    return record.created_at.isoformat()
