from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from automl_ft.data.saved import load_saved_splits
from automl_ft.errors import ExportError, ModelError
from automl_ft.export import model as module
from automl_ft.export.job import TOLERANCE
from automl_ft.export.model import rebuild_model, save_model, verify_model
from automl_ft.models.quiet import quiet
from automl_ft.tasks.registry import get_task
from automl_ft.trial import sizing
from automl_ft.trial.sizing import whole_eval_batch

EVAL_BATCH_SIZE = 5
"""In which the study of the fixtures was validated."""


@pytest.fixture(params=["bert", "gpt2"])
def study(request):
    return request.getfixturevalue(f"{request.param}_study")


@pytest.fixture
def written(study, make_job, tmp_path):
    job = make_job(study, tmp_path)
    save_model(job, rebuild_model(job), tmp_path / "model")
    return job


def test_the_written_model_has_the_trials_value(written, study, tmp_path):
    value = verify_model(written, tmp_path / "model")
    assert value == pytest.approx(study.trial.value, abs=TOLERANCE)
    assert value > 0.34  # better than one class for all: the check can tell models apart


def test_plain_transformers_loads_the_trained_parameters(written, study, tmp_path):
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    parameters = dict(model.named_parameters())
    trained = load_file(study.folder / "trials" / "0" / "best.safetensors")
    assert trained
    assert all(torch.equal(parameters[name], value) for name, value in trained.items())
    assert model.config.id2label == {0: "animal", 1: "fruit", 2: "tool"}
    assert model.config.label2id == {"animal": 0, "fruit": 1, "tool": 2}
    assert model.dtype == torch.float32


def test_a_pipeline_gives_labels(written, tmp_path):
    with quiet():
        classify = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu")
    [answer] = classify("the cat " * 20, truncation=True)
    assert answer["label"] in {"animal", "fruit", "tool"}


def test_the_tokenizer_cuts_to_the_studys_length_and_can_pad(written, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.model_max_length == 10
    batch = tokenizer(["the cat " * 20, "cat"], truncation=True, padding=True)
    assert [len(row) for row in batch["input_ids"]] == [10, 10]


def test_weights_are_safetensors_only(written, tmp_path):
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in names
    assert not any(name.endswith(".bin") for name in names)


def test_what_it_was_trained_on_lies_beside_the_weights(written, tmp_path):
    about = json.loads((tmp_path / "model" / "automl_ft.json").read_text(encoding="utf-8"))
    assert about["text"] == ["review"]
    assert (about["study"], about["trial"], about["max_length"]) == ("reviews", 0, 10)


def test_another_value_is_refused_with_both_numbers(written, tmp_path):
    true = written.value
    wrong = dataclasses.replace(written, value=true - 0.01)
    with pytest.raises(ExportError, match=f"f1_macro {true!r}.*has {true - 0.01!r}"):
        verify_model(wrong, tmp_path / "model")


def test_a_value_within_the_tolerance_is_accepted(written, tmp_path):
    close = dataclasses.replace(written, value=written.value + TOLERANCE / 2)
    assert verify_model(close, tmp_path / "model") == written.value


@pytest.fixture
def near_tie(bert_study, make_job, tmp_path, monkeypatch):
    """Make a trial whose best two classes nearly tie in one row, and score it with rounding."""

    def make(rounding, *, device="cpu (x86_64)"):
        folder = tmp_path / "study"
        shutil.copytree(bert_study.folder, folder)
        path = folder / "trials" / "0" / "validation_logits.npy"
        logits = np.load(path)
        targets = load_saved_splits(folder / "data" / "splits").validation.labels
        row = int(np.flatnonzero(logits.argmax(axis=1) == targets)[0])
        logits[row] = 0.0
        logits[row, targets[row]] = rounding / 4
        np.save(path, logits)
        labels = bert_study.record.facts.data.labels
        scores = get_task("text-classification").metrics(np.asarray(targets), logits, labels, None)
        job = make_job(bert_study, tmp_path, folder=str(folder), value=scores["f1_macro"])
        save_model(job, rebuild_model(job), tmp_path / "model")
        rounded = logits.copy()
        rounded[row, targets[row] - 1] = rounding
        monkeypatch.setattr(module, "predict_logits", lambda *arguments: rounded)
        return dataclasses.replace(job, facts=dataclasses.replace(job.facts, device=device))

    return make


@pytest.mark.parametrize(("device", "rounding"), [("cpu (x86_64)", 9e-5), ("xpu:0 (GPU)", 9e-4)])
def test_a_row_that_rounding_moves_is_no_mismatch(near_tie, tmp_path, device, rounding):
    job = near_tie(rounding, device=device)
    value = verify_model(job, tmp_path / "model")
    assert value < job.value - 0.01  # the value of what was written, not the trial's


@pytest.mark.parametrize(("device", "limit"), [("cpu (x86_64)", 1e-4), ("xpu:0 (GPU)", 1e-3)])
def test_scores_that_differ_by_more_than_rounding_are_a_mismatch(near_tie, tmp_path, device, limit):
    job = near_tie(limit * 1.2, device=device)
    with pytest.raises(ExportError, match=rf"up to {limit * 1.2:.2g} off \(rounding: {limit:g}\)"):
        verify_model(job, tmp_path / "model")


@pytest.mark.parametrize(("shift", "is_same"), [(0.02, True), (0.2, False)])
def test_scores_in_bf16_may_be_off_as_bf16_is_where_no_class_changes(
    near_tie, tmp_path, monkeypatch, shift, is_same
):
    job = near_tie(5e-5)
    job = dataclasses.replace(job, facts=dataclasses.replace(job.facts, precision="bf16"))
    found = module.predict_logits()
    stored = np.load(tmp_path / "study" / "trials" / "0" / "validation_logits.npy")
    far = stored.argmax(axis=1) == found.argmax(axis=1)
    found[far] += np.float32(shift * np.abs(found).max())  # of all classes: none changes
    if is_same:
        assert verify_model(job, tmp_path / "model") < job.value
    else:
        with pytest.raises(ExportError, match="scores are up to"):
            verify_model(job, tmp_path / "model")


def test_a_row_of_another_class_must_be_near_whatever_the_precision(near_tie, tmp_path):
    job = near_tie(1.2e-4)
    job = dataclasses.replace(job, facts=dataclasses.replace(job.facts, precision="bf16"))
    with pytest.raises(ExportError, match=r"up to 0.00012 off \(rounding: 0.0001\)"):
        verify_model(job, tmp_path / "model")


def test_without_the_trials_scores_a_mismatch_is_refused(near_tie, tmp_path):
    job = near_tie(5e-5)
    path = tmp_path / "study" / "trials" / "0" / "validation_logits.npy"
    path.unlink()
    with pytest.raises(ExportError, match=f"`{path}`, are gone"):
        verify_model(job, tmp_path / "model")


def test_scores_of_another_split_prove_nothing(near_tie, tmp_path):
    job = near_tie(5e-5)
    path = tmp_path / "study" / "trials" / "0" / "validation_logits.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(ExportError, match="not those of the trial"):
        verify_model(job, tmp_path / "model")


def test_the_written_model_gives_the_very_scores_of_the_trial(written, study, tmp_path):
    """The rows pass in the trial's batches, so that not even rounding differs."""
    training = dataclasses.replace(written.config.training, eval_batch_size=EVAL_BATCH_SIZE)
    job = dataclasses.replace(
        written, config=dataclasses.replace(written.config, training=training)
    )
    rows = load_saved_splits(study.folder / "data" / "splits").validation
    found = module._logits(job, tmp_path / "model", rows, torch.device("cpu"))
    stored = np.load(study.folder / "trials" / "0" / "validation_logits.npy")
    np.testing.assert_array_equal(found, stored)


def test_rows_pass_as_many_at_once_as_a_trial_chooses(written, tmp_path, monkeypatch):
    asked = []

    def score(model, split, padding, batch_size, device):
        asked.append((batch_size, whole_eval_batch("auto", split.lengths, device.type)))
        return real(model, split, padding, batch_size, device)

    real = module.predict_logits
    monkeypatch.setattr(sizing, "_EVAL_TOKENS", 40)
    monkeypatch.setattr(module, "predict_logits", score)
    assert written.config.training.eval_batch_size == "auto"
    verify_model(written, tmp_path / "model")
    ((batch_size, expected),) = asked
    assert batch_size == expected < 8


def test_a_missing_checkpoint_is_refused(bert_study, make_job, tmp_path):
    with pytest.raises(ExportError, match="not on disk"):
        rebuild_model(make_job(bert_study, tmp_path, number=5))


def test_changed_pretrained_weights_are_refused(bert_study, make_job, tmp_path):
    job = make_job(bert_study, tmp_path)
    checkpoint = dataclasses.replace(job.checkpoint, weights_hash="0" * 64)
    facts = dataclasses.replace(job.facts, checkpoints=(checkpoint,))
    with pytest.raises(ExportError, match=f"the study's {'0' * 64}"):
        rebuild_model(dataclasses.replace(job, facts=facts))


def test_a_pretrained_model_that_is_gone_is_refused(bert_study, make_job, tmp_path):
    job = make_job(bert_study, tmp_path)
    model = dataclasses.replace(job.config.model, checkpoint=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="gone"):
        rebuild_model(dataclasses.replace(job, config=dataclasses.replace(job.config, model=model)))


@pytest.mark.parametrize("name", ["no.such.weight", "classifier.weight"])
def test_a_checkpoint_that_does_not_fit_is_refused(bert_study, make_job, tmp_path, name):
    path = tmp_path / "study" / "trials" / "0" / "best.safetensors"
    path.parent.mkdir(parents=True)
    save_file({name: torch.zeros(2, 5)}, path)
    with pytest.raises(ExportError, match=rf"`{name}` of shape \(2, 5\)"):
        rebuild_model(make_job(bert_study, tmp_path, folder=str(tmp_path / "study")))


def test_a_pair_of_texts_and_another_objective_work_too(new_study, make_job, tmp_path):
    study = new_study(is_pair=True, objective="f1_binary")
    job = make_job(study, tmp_path)
    save_model(job, rebuild_model(job), tmp_path / "model")
    assert verify_model(job, tmp_path / "model") == pytest.approx(study.trial.value, abs=TOLERANCE)


def test_a_searched_model_and_dropout_are_used(bert_study, make_job, tmp_path):
    name = bert_study.record.config.model.checkpoint
    values = {**bert_study.trial.hyperparameters, "model": name, "dropout": 0.25}
    rebuilt = rebuild_model(make_job(bert_study, tmp_path, hyperparameters=values))
    assert rebuilt.loaded.model.config.hidden_dropout_prob == 0.25
