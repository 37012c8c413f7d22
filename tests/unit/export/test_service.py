from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import pytest
from transformers import AutoModelForSequenceClassification

from automl_ft.config.load import load_config
from automl_ft.errors import AutomlFtError, ExportError, ModelError, UsageError
from automl_ft.export import main as writer
from automl_ft.export import service
from automl_ft.export.job import TOLERANCE
from automl_ft.export.service import export_trial
from automl_ft.files.child import child_command
from automl_ft.models.quiet import quiet
from automl_ft.specs.codec import from_plain, to_plain


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run the writing process inside this one: the same code, without its start."""

    def run(command, *, input, env, **options):
        assert command == child_command(writer.__name__)
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        capsys.readouterr()
        code = writer.main()
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(command, code, captured.out, captured.err)

    monkeypatch.setattr(subprocess, "run", run)


def export(study, to, **options):
    return export_trial(store=study.store, folder=study.folder, to=to, **options)


def test_a_process_of_its_own_writes_all_four_parts(bert_study, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise RuntimeError('not the real one')")
    monkeypatch.chdir(tmp_path / "here")
    target = export(bert_study, tmp_path / "best", verdict_text="It does not beat it.")
    assert target == tmp_path / "best"
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md", "config.yaml", "model", "train.py",
    ]  # fmt: skip
    with quiet():
        AutoModelForSequenceClassification.from_pretrained(target / "model")
    assert load_config(str(target / "config.yaml")).config.name == "reviews-trial-0"
    assert "It does not beat it." in (target / "README.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "here"]


def test_exporting_imports_neither_torch_nor_transformers_here():
    code = (
        "import sys, automl_ft.export.service as s\n"
        "from automl_ft.config.study import *\n"
        "s.absolute_paths(StudyConfig(model=ModelConfig(checkpoint='a/b'),"
        " data=DataConfig(path='c/d')))\n"
        "print(sorted({'torch', 'transformers', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_existing_folder_needs_force(bert_study, tmp_path, in_process):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.yaml").write_text("mine")
    with pytest.raises(ExportError, match="--force"):
        export(bert_study, tmp_path / "best")
    assert (tmp_path / "best" / "config.yaml").read_text() == "mine"
    export(bert_study, tmp_path / "best", force=True)
    assert (tmp_path / "best" / "model").is_dir()


def test_a_failure_loses_nothing_and_leaves_nothing(bert_study, tmp_path, in_process):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.yaml").write_text("mine")
    wrong = dataclasses.replace(bert_study.trial, value=bert_study.trial.value - 0.1)
    study = dataclasses.replace(
        bert_study, store=dataclasses.replace(bert_study.store, records=(wrong,))
    )
    with pytest.raises(ExportError, match=r"they may differ by 1e-06"):
        export(study, tmp_path / "best", force=True)
    assert (tmp_path / "best" / "config.yaml").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_error_of_the_writer_keeps_its_class(bert_study, tmp_path, in_process):
    record = bert_study.record
    gone = dataclasses.replace(record.config.model, checkpoint=str(tmp_path / "gone"))
    record = dataclasses.replace(record, config=dataclasses.replace(record.config, model=gone))
    study = dataclasses.replace(
        bert_study, store=dataclasses.replace(bert_study.store, record=record)
    )
    with pytest.raises(ModelError, match="gone"):
        export(study, tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_a_trial_that_is_not_there_is_refused_before_anything_is_made(bert_study, tmp_path):
    with pytest.raises(ExportError, match="no trial 9"):
        export(bert_study, tmp_path / "best", number=9)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_kept_is_refused_before_anything_is_made(
    bert_study, make_trial, tmp_path
):
    store = dataclasses.replace(bert_study.store, records=(bert_study.trial, make_trial(1)))
    study = dataclasses.replace(bert_study, store=store)
    with pytest.raises(ExportError, match="automl-ft enqueue reviews 1"):
        export(study, tmp_path / "best", number=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "expected", "said"),
    [
        ("", AutomlFtError, "exit code -9; nothing was written.*the last line"),
        ("not json", AutomlFtError, "broke off"),
        ('{"error": "NoSuchError", "message": "x"}', AutomlFtError, "broke off"),
        ('{"error": "ExportError", "message": "text"}', ExportError, "^text$"),
        ('{"error": "ConfigError", "message": "text"}', UsageError, "^text$"),
    ],
)
def test_whatever_the_writer_answers_becomes_one_clear_error(
    bert_study, tmp_path, monkeypatch, output, expected, said
):
    answer = subprocess.CompletedProcess([], -9, output, "Traceback\nthe last line")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(expected, match=f"(?s){said}"):
        export(bert_study, tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


def test_a_job_survives_the_way_through_json(bert_study, make_job, tmp_path):
    job = make_job(bert_study, tmp_path)
    assert from_plain(type(job), json.loads(json.dumps(to_plain(job)))) == job


def test_the_summary_tells_states_times_and_the_default(bert_study, make_trial):
    trials = [
        make_trial(0, value=0.4, origin="user"),
        make_trial(1, value=0.6, origin="sampler"),
        make_trial(2, value=0.2, origin="default"),
    ]
    summary = service._summarise(bert_study.store, trials, "So.")
    assert [row.number for row in summary.top] == [1, 0, 2]
    assert summary.counts == {"complete": 3}
    assert summary.default_number == 2
    assert (summary.default_value, summary.seconds, summary.verdict) == (0.2, 61.0, "So.")


def test_the_writers_answer_is_the_only_thing_on_standard_output(
    bert_study, make_job, tmp_path, monkeypatch, capsys
):
    job = make_job(bert_study, tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(to_plain(job))))
    assert writer.main() == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["value"] == pytest.approx(job.value, abs=TOLERANCE)


def test_two_checkpoints_are_told_apart_by_name(bert_study, make_job, tmp_path):
    job = make_job(bert_study, tmp_path)
    other = dataclasses.replace(job.checkpoint, checkpoint="other")
    facts = dataclasses.replace(job.facts, checkpoints=(job.checkpoint, other))
    searched = dataclasses.replace(job, facts=facts, hyperparameters={"model": "other"})
    assert searched.checkpoint is other
    assert dataclasses.replace(searched, hyperparameters={}).checkpoint is job.checkpoint
