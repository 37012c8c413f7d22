"""How is a study opened: created when it is new, checked and gone on with when it is not?

space file -> worker reads data and models (nothing is written) -> facts
  new study:   folder free? -> create in the database -> keep the data
  old study:   same data, model, objective, task? -> space may grow -> go on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from automl_ft.config.study import StudyConfig
from automl_ft.errors import NoStudiesError, StudyNotFoundError
from automl_ft.search.events import SearchListener
from automl_ft.search.folder import StudyFolder, study_folder
from automl_ft.search.resume import check_resumable
from automl_ft.search.team import Team
from automl_ft.space.growth import merge
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.space.spec import CategoricalParam, Fixed, SearchSpace
from automl_ft.space.suggest import stored_distributions
from automl_ft.specs.facts import StudyFacts
from automl_ft.storage.records import StudyRecord
from automl_ft.storage.store import StudyStore
from automl_ft.storage.studies import StudyDatabase, open_database

__all__ = ["OpenedStudy", "open_study"]


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
    config: StudyConfig, origins: Mapping[str, str], team: Team, listener: SearchListener
) -> OpenedStudy:
    """Create a study, or check that an existing one may go on.

    Args:
        config: What is asked for; it has a name.
        origins: Where each setting came from.
        team: A worker of it reads data and models.
        listener: Told what is being done.

    Returns:
        The study; its workers are not open yet.

    Raises:
        UsageError: Anything is wrong with space, data, model, database or an existing study;
            then nothing was created.
    """
    loaded = load_space(config.space)
    existing = _existing(config)
    folder = study_folder(config, None if existing is None else existing.record)
    folder.check_free(str(config.name), None if existing is None else _mark(existing.record))
    listener.preparing("reading data and model")
    facts = team.prepare(
        config, _checkpoints(config, loaded), None if existing is None else folder.path
    )
    space = resolve(loaded, {"num_layers": facts.num_layers})
    if existing is None:
        return _create(config, origins, facts, space, folder)
    return _resume(existing, config, origins, facts, space, folder)


def _existing(config: StudyConfig) -> StudyStore | None:
    """Return the stored study of that name, creating nothing."""
    try:
        database = open_database(config.storage)
    except NoStudiesError:
        return None
    try:
        return database.load(str(config.name))
    except StudyNotFoundError:
        database.close()
        return None


def _checkpoints(config: StudyConfig, space: SearchSpace) -> tuple[str, ...]:
    param = space.find("model")
    if isinstance(param, CategoricalParam):
        return tuple(str(choice) for choice in param.choices)
    if isinstance(param, Fixed) and param.value is not None:
        return (str(param.value),)
    return (config.model.checkpoint,)


def _create(
    config: StudyConfig,
    origins: Mapping[str, str],
    facts: StudyFacts,
    space: SearchSpace,
    folder: StudyFolder,
) -> OpenedStudy:
    config = dataclasses.replace(config, output=str(folder.path))
    record = StudyRecord(
        name=str(config.name),
        config=config,
        facts=facts,
        space=space.to_plain(),
        objective=config.objective,
        created_at=datetime.now(UTC),
        origins=origins,
    )
    database: StudyDatabase = open_database(config.storage, create=True)
    store = database.create(record)
    return OpenedStudy(
        store=store,
        config=config,
        facts=facts,
        space=space,
        stored_space=space,
        folder=folder,
        is_resumed=False,
    )


def _resume(
    store: StudyStore,
    config: StudyConfig,
    origins: Mapping[str, str],
    facts: StudyFacts,
    space: SearchSpace,
    folder: StudyFolder,
) -> OpenedStudy:
    record = store.record
    check_resumable(record, config, facts, space)
    config = dataclasses.replace(config, output=str(folder.path))
    union = merge(SearchSpace.from_plain(record.space), space)
    return OpenedStudy(
        store=store,
        config=config,
        facts=dataclasses.replace(facts, checkpoints=_all_checkpoints(record.facts, facts)),
        space=space,
        stored_space=union,
        folder=folder,
        is_resumed=True,
    )


def _all_checkpoints(old: StudyFacts, new: StudyFacts) -> tuple:  # type: ignore[type-arg]
    current = {facts.checkpoint for facts in new.checkpoints}
    return new.checkpoints + tuple(f for f in old.checkpoints if f.checkpoint not in current)


def store_changes(opened: OpenedStudy, origins: Mapping[str, str]) -> None:
    """Store what a rerun changed: budget, sampler, pruner, a grown space. Needs the lock.

    Args:
        opened: The study.
        origins: Where each setting came from.

    Raises:
        StudyExistsError: A stored distribution cannot grow; nothing is changed.
    """
    opened.store.update_record(
        config=opened.config,
        space=opened.stored_space.to_plain(),
        facts=opened.facts,
        origins=origins,
        distributions=stored_distributions(opened.stored_space),
    )


def _mark(record: StudyRecord) -> str:
    return record.created_at.isoformat()
