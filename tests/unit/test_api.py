"""The Python interface does what the command line does."""

import pytest
from optuna.trial import TrialState

import automl_ft
from automl_ft import api
from automl_ft.errors import (
    ConfigError,
    ExportError,
    StorageError,
    StudyLockedError,
    StudyNotFoundError,
    UsageError,
)
from automl_ft.storage.database import Database


@pytest.fixture
def study(lab):
    """A study of two complete trials."""
    lab.search(trials=2, pruner="none")
    loaded = automl_ft.load_study("demo", storage=lab.url)
    yield loaded
    loaded.close()


def test_search_is_the_function_behind_the_command(lab):
    outcome = api.search(lab.config(trials=1), factory=lab.script)
    assert outcome.study_name == "demo"


def test_loaded_study_knows_what_it_is(lab, study):
    assert (study.name, study.location) == ("demo", lab.url)
    assert repr(study) == f"Study('demo', '{lab.url}')"
    assert study.record.config.model.checkpoint == "tiny"
    assert study.folder == lab.files.path
    assert study.store.name == "demo"


def test_trials_are_read_anew_each_time(lab, study):
    assert len(study.trials) == 2
    lab.search(trials=3, pruner="none")
    assert len(study.trials) == 3


def test_best_trial_and_ranking_agree(study):
    ranking = study.ranking()
    assert [ranked.rank for ranked in ranking] == [1, 2]
    assert ranking[0].trial == study.best_trial
    assert study.best_trial.value == max(trial.value for trial in study.trials)


def test_study_without_a_complete_trial_has_neither_best_trial_nor_verdict(lab):
    lab.search(trials=0)
    study = api.load_study("demo", storage=lab.url)
    assert (study.best_trial, study.verdict()) == (None, None)
    assert [ranked.rank for ranked in study.ranking()] == [None]
    assert study.importances() == {}
    with pytest.raises(ExportError, match="nothing"):
        study.export(lab.folder / "best")
    study.close()


def test_verdict_compares_with_the_default_recipe(study):
    verdict = study.verdict()
    assert verdict.default == 0
    assert verdict.default_value == study.trials[0].value


def test_importances_are_shares(lab):
    lab.search(trials=12, pruner="none")
    study = api.load_study("demo", storage=lab.url)
    shares = study.importances()
    assert set(shares) == {"learning_rate", "dropout"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    study.close()


def test_enqueued_configuration_and_rerun_wait_for_the_next_search(lab, study):
    assert study.enqueue({"dropout": 0.3}) == 2
    assert study.rerun(1) == 3
    assert [trial.state for trial in study.trials[2:]] == [TrialState.WAITING] * 2
    lab.search(trials=3, pruner="none")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4


def test_bad_configuration_is_refused(study):
    with pytest.raises(ConfigError, match="drpout"):
        study.enqueue({"drpout": 0.3})
    with pytest.raises(UsageError, match="no trial 9"):
        study.rerun(9)


def test_export_hands_over_what_there_is_to_say(lab, study, monkeypatch):
    given = {}
    monkeypatch.setattr(api, "export_trial", lambda **kwargs: given.update(kwargs) or kwargs["to"])
    target = lab.folder / "best"
    assert study.export(str(target), trial=1, force=True) == target
    assert (given["to"], given["number"], given["force"]) == (target, 1, True)
    assert (given["store"], given["folder"]) == (study.store, study.folder)
    assert given["verdict_text"] == study.verdict().text


def test_study_is_deleted_with_its_files(lab, study):
    study.delete()
    assert not lab.files.path.exists()
    assert api.list_studies(lab.url) == []
    with pytest.raises(StudyNotFoundError, match="demo"):
        api.load_study("demo", storage=lab.url)


def test_deleted_study_may_be_created_anew(lab, study):
    study.delete()
    lab.search(trials=1)
    assert lab.states() == ["COMPLETE"]


def test_study_that_is_being_searched_is_not_deleted(lab, study):
    with lab.store().lock(lab.files.path), pytest.raises(StudyLockedError):
        study.delete()
    assert lab.files.path.is_dir()
    assert len(study.trials) == 2


def test_files_that_are_not_the_study_s_are_not_deleted_with_it(lab, study):
    (lab.files.path / "study.json").write_text('{"study": "other", "created_at": "then"}')
    study.delete()
    assert lab.files.path.is_dir()


def test_studies_are_listed(lab, study):
    lab.search(trials=0, name="other", output=str(lab.folder / "other"))
    summaries = api.list_studies(lab.url)
    assert [summary.name for summary in summaries] == ["demo", "other"]
    assert summaries[0].num_trials == {TrialState.COMPLETE: 2}


def test_environment_names_the_database_where_nothing_else_does(lab, study, monkeypatch):
    monkeypatch.setenv("AUTOML_FT_STORAGE", lab.url)
    assert [summary.name for summary in automl_ft.list_studies()] == ["demo"]
    loaded = automl_ft.load_study("demo")
    assert loaded.name == "demo"
    loaded.close()


def test_missing_database_is_an_error_and_stays_missing(bare_lab):
    with pytest.raises(StorageError, match="no studies"):
        api.load_study("demo", storage=bare_lab.url)
    with pytest.raises(StorageError, match="no studies"):
        api.list_studies(bare_lab.url)
    assert not bare_lab.database_file.exists()


def test_misspelled_study_is_named_with_a_suggestion(lab, study, monkeypatch):
    closed = []
    real = Database.close
    monkeypatch.setattr(Database, "close", lambda self: [closed.append(self), real(self)])
    with pytest.raises(StudyNotFoundError, match=r"no study `dmo`.*Did you mean `demo`"):
        api.load_study("dmo", storage=lab.url)
    assert len(closed) == 1, "the database is not left open"


def test_public_names_are_there():
    for name in automl_ft.__all__:
        assert hasattr(automl_ft, name)
    assert set(api.__all__) == {"Study", "list_studies", "load_study", "search"}
    assert {"Study", "search", "load_study"} <= set(dir(automl_ft))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = automl_ft.nonsense
