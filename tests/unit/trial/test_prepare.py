"""Preparing a study writes nothing; what is kept is opened as it was."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig
from automl_ft.data import bundled
from automl_ft.data.saved import load_saved_splits
from automl_ft.errors import DataError, ModelError, UsageError
from automl_ft.specs.validation import assumed_cost, choose_validations_per_epoch
from automl_ft.trial import prepare
from automl_ft.trial.prepare import (
    PreparedStudy,
    keep_study,
    open_study,
    prepare_study,
)


def files_below(*folders: Path) -> dict[str, float]:
    return {
        os.path.join(place, name): os.stat(os.path.join(place, name)).st_mtime
        for folder in folders
        for place, _, names in os.walk(folder)
        for name in names
    }


def rows_of(study: PreparedStudy, split: str) -> list[list[int]]:
    encoded = study.checkpoint(None).splits[split]
    return [encoded.row(i).input_ids.tolist() for i in range(len(encoded))]


def with_data(config: StudyConfig, **changes: Any) -> StudyConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def with_model(config: StudyConfig, folder: Path) -> StudyConfig:
    return dataclasses.replace(config, model=ModelConfig(checkpoint=str(folder)))


def test_the_facts_tell_data_and_model(study: PreparedStudy, checkpoint: Path) -> None:
    data, (model,) = study.facts.data, study.facts.checkpoints
    assert data.labels == ("bad", "good", "odd")
    assert data.num_examples == {"train": 41, "validation": 18, "test": 0}
    assert (model.checkpoint, model.revision, model.architecture) == (str(checkpoint), "", "bert")
    assert (model.num_layers, len(model.weights_hash)) == (2, 64)
    loaded = study.load_model(study.checkpoint(None), dropout=None, seed=0).model
    assert model.num_parameters == sum(p.numel() for p in loaded.parameters())
    assert study.facts.versions["torch"] == torch.__version__
    assert study.facts.device.startswith("cpu")


def test_rows_are_encoded_for_the_search_only(study: PreparedStudy) -> None:
    opened = study.checkpoint(None)
    assert set(opened.splits) == {"train", "validation"}
    assert [len(opened.splits[name]) for name in ("train", "validation")] == [41, 18]
    assert opened.facts.num_tokens == opened.splits["train"].num_tokens
    assert opened.padding.token_id == 0
    assert opened.replacement_token_id == 4


def test_the_longest_one_in_a_hundred_is_cut(study: PreparedStudy) -> None:
    lengths = study.checkpoint(None).splits["train"].lengths
    facts = study.checkpoint(None).facts
    assert facts.max_length == max(lengths)
    assert facts.num_truncated == 0


def test_a_given_length_is_obeyed(config: StudyConfig) -> None:
    found = prepare_study(with_data(config, max_length=6), (config.model.checkpoint,), None)
    facts = found.checkpoint(None).facts
    assert facts.max_length == 6
    assert max(found.checkpoint(None).splits["train"].lengths) == 6
    assert facts.num_truncated > 20


def test_preparing_writes_nothing(config: StudyConfig, tmp_path: Path, checkpoint: Path) -> None:
    data = Path(str(config.data.train)).parent
    before = files_below(data, checkpoint, tmp_path)
    prepare_study(config, (config.model.checkpoint,), None)
    assert files_below(data, checkpoint, tmp_path) == before


def test_preparing_twice_gives_the_same(config: StudyConfig, study: PreparedStudy) -> None:
    again = prepare_study(config, (config.model.checkpoint,), None)
    assert again.facts == study.facts
    assert rows_of(again, "train") == rows_of(study, "train")


def test_a_kept_study_opens_as_it_was(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path / "study")
    opened = open_study(config, study.facts, tmp_path / "study")
    assert opened.rows is None
    assert opened.facts == study.facts
    for split in ("train", "validation"):
        assert rows_of(opened, split) == rows_of(study, split)
        found = opened.checkpoint(None).splits[split]
        np.testing.assert_array_equal(found.labels, study.checkpoint(None).splits[split].labels)
    assert opened.checkpoint(None).padding == study.checkpoint(None).padding
    replacement = study.checkpoint(None).replacement_token_id
    assert opened.checkpoint(None).replacement_token_id == replacement


def test_an_opened_study_maps_its_rows(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path)
    split = open_study(config, study.facts, tmp_path).checkpoint(None).splits["train"]
    assert isinstance(split.input_ids, np.memmap)
    assert not split.input_ids.flags.writeable


def test_what_this_process_prepared_is_not_looked_up_again(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path)
    opened = open_study(config, study.facts, tmp_path, prepared=study)
    assert opened.checkpoint(None).resolved is study.checkpoint(None).resolved
    assert isinstance(opened.checkpoint(None).splits["train"].input_ids, np.memmap)


def test_facts_do_not_tell_which_gpu_the_first_worker_has(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is the process's own; what is stored is what the study asked for."""
    described: list[torch.device] = []
    monkeypatch.setattr(prepare, "open_device", lambda wanted, slot=0: torch.device("cpu", 0))
    monkeypatch.setattr(prepare, "describe_device", lambda device: str(described.append(device)))
    prepare_study(config, (config.model.checkpoint,), None)
    assert described == [torch.device("cpu")]


def test_a_trial_runs_the_same_on_an_opened_study(
    config: StudyConfig, study: PreparedStudy, run: Any, tmp_path: Path
) -> None:
    keep_study(study, tmp_path / "study")
    opened = open_study(config, study.facts, tmp_path / "study")
    first = run(folder=tmp_path / "a", epochs=1)
    second = run(study=opened, folder=tmp_path / "b", epochs=1)
    assert second.metrics == first.metrics


def test_the_kept_rows_are_those_that_were_split(study: PreparedStudy, tmp_path: Path) -> None:
    keep_study(study, tmp_path)
    assert study.rows is not None
    kept = load_saved_splits(tmp_path / "data" / "splits")
    assert kept.train.texts == study.rows.train.texts
    assert kept.facts() == study.facts.data


def test_keeping_twice_writes_once(study: PreparedStudy, tmp_path: Path) -> None:
    keep_study(study, tmp_path)
    before = files_below(tmp_path)
    assert before
    keep_study(study, tmp_path)
    assert files_below(tmp_path) == before


def test_keeping_mends_what_is_damaged(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path)
    for name in ("splits.json", "input_ids.npy"):
        for path in tmp_path.rglob(name):
            path.write_bytes(b"damaged")
    keep_study(study, tmp_path)
    assert load_saved_splits(tmp_path / "data" / "splits").facts() == study.facts.data
    assert rows_of(open_study(config, study.facts, tmp_path), "train") == rows_of(study, "train")


def test_missing_encoded_rows_are_told_with_the_remedy(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"missing or damaged. Run the same `automl-ft search`"):
        open_study(config, study.facts, tmp_path)


def test_encoded_rows_of_other_data_are_not_opened(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path)
    data = dataclasses.replace(
        study.facts.data, split_fingerprints={"train": "other", "validation": "other"}
    )
    with pytest.raises(DataError, match="missing or damaged"):
        open_study(config, dataclasses.replace(study.facts, data=data), tmp_path)


def test_several_checkpoints_are_encoded_each_for_itself(
    config: StudyConfig, save_checkpoint: Callable[..., Path], run: Any, tmp_path: Path
) -> None:
    small, other = config.model.checkpoint, str(save_checkpoint("distilbert", dim=32, n_layers=3,
        n_heads=2, hidden_dim=40))  # fmt: skip
    study = prepare_study(config, (small, other), None)
    assert [facts.architecture for facts in study.facts.checkpoints] == ["bert", "distilbert"]
    assert study.facts.num_layers == 2
    assert study.checkpoint(None) is study.checkpoint(small) is not study.checkpoint(other)
    keep_study(study, tmp_path / "study")
    opened = open_study(config, study.facts, tmp_path / "study")
    result = run(study=opened, model=other, epochs=1)
    assert result.failure is None
    assert opened.checkpoint(other).resolved.model_type == "distilbert"


def test_a_checkpoint_that_was_not_prepared_is_a_failed_trial(run: Any) -> None:
    result = run(model="never/prepared")
    assert result.failure is not None
    assert "never/prepared" in result.failure.message


def test_a_positive_label_must_be_one_of_the_data(config: StudyConfig) -> None:
    wrong = dataclasses.replace(config, objective="f1_binary", positive_label="goood")
    with pytest.raises(UsageError, match=r"`goood` is no label of the data; accepted: bad, good"):
        prepare_study(wrong, (config.model.checkpoint,), None)


def test_a_positive_label_of_the_data_is_scored(config: StudyConfig) -> None:
    right = dataclasses.replace(config, objective="f1_binary", positive_label="good")
    study = prepare_study(right, (config.model.checkpoint,), None)
    logits = np.eye(3, dtype=np.float32)
    assert study.metrics(np.array([0, 1, 2]), logits)["f1_binary"] == 1.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": "cuda:99"}, UsageError, "device: `cuda:99` is not available"),
        ({"model": ModelConfig(checkpoint="./none")}, ModelError, "`./none` does not exist"),
        ({"data": DataConfig(path="none.csv")}, DataError, "none.csv"),
    ],
    ids=["device", "model", "data"],
)
def test_bad_input_leaves_no_trace(
    config: StudyConfig,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[UsageError],
    message: str,
) -> None:
    wrong = dataclasses.replace(config, **changes)
    with pytest.raises(error, match=message):
        prepare_study(wrong, (wrong.model.checkpoint,), None)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_model_is_found_before_data_are_read(config: StudyConfig) -> None:
    wrong = dataclasses.replace(config, data=DataConfig(path="none.csv"))
    with pytest.raises(ModelError):
        prepare_study(wrong, ("./none",), None)


def test_the_encoded_folder_tells_checkpoints_of_one_name_apart(
    config: StudyConfig, save_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folders = set()
    for seed in (1, 2):
        folder = tmp_path / "model"
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        save_checkpoint(seed=seed).rename(folder)
        study = prepare_study(with_model(config, folder), (str(folder),), None)
        keep_study(study, tmp_path / "study")
        folders = {path.name for path in (tmp_path / "study" / "data" / "encoded").iterdir()}
    assert len(folders) == 2


@pytest.mark.parametrize("pad_token_id", [0, 1])
@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_roberta_counts_positions_from_after_its_padding(
    config: StudyConfig,
    save_checkpoint: Callable[..., Path],
    architecture: str,
    pad_token_id: int,
) -> None:
    folder = save_checkpoint(architecture, max_position_embeddings=12, pad_token_id=pad_token_id)
    short = with_model(config, folder)
    study = prepare_study(short, (str(folder),), None)
    limit = 12 - pad_token_id - 1
    assert study.checkpoint(None).facts.max_length == limit
    with pytest.raises(DataError, match=f"accepts at most {limit} tokens"):
        prepare_study(with_data(short, max_length=limit + 1), (str(folder),), None)
    model = study.load_model(study.checkpoint(None), dropout=None, seed=0).model
    ids = torch.full((1, limit), 7)
    assert model(input_ids=ids).logits.shape == (1, 3)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, limit + 1), 7))


def test_weights_are_read_once_and_refused_where_somebody_changed_them(
    config: StudyConfig, save_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_checkpoint("bert")
    study = prepare_study(with_model(config, folder), (str(folder),), None)
    opened = study.checkpoint(None)
    first = study.weights_of(opened)
    assert study.weights_of(opened) is first
    assert study.weights == {str(folder): first}, "those that were looked at"
    file = folder / "model.safetensors"
    copied = tmp_path / "copied"
    copied.write_bytes(file.read_bytes())
    copied.replace(file)
    again = study.weights_of(opened)  # another file of the same content
    assert again is not first
    other = {name: tensor + 1 for name, tensor in again.tensors.items()}
    save_file(other, tmp_path / "other", metadata={"format": "pt"})
    (tmp_path / "other").replace(file)
    with pytest.raises(ModelError, match=r"weights of the model .* have changed since the study"):
        study.weights_of(opened)
    with pytest.raises(ModelError, match="have changed"):  # and again for the next trial
        study.weights_of(opened)
    elsewhere = dataclasses.replace(study, weights={})  # a process that has read none yet
    with pytest.raises(ModelError, match="have changed"):
        elsewhere.weights_of(opened)


def test_a_token_that_the_model_has_no_embedding_for_is_refused(
    config: StudyConfig, save_checkpoint: Callable[..., Path]
) -> None:
    folder = save_checkpoint("bert", vocab_size=40)
    with pytest.raises(ModelError, match=r"`w35` the id 40, and \d+ others .* 0 to 39 only"):
        prepare_study(with_model(config, folder), (str(folder),), None)


def test_bert_uses_all_its_positions(
    config: StudyConfig, save_checkpoint: Callable[..., Path]
) -> None:
    folder = save_checkpoint("bert", max_position_embeddings=9)
    study = prepare_study(with_model(config, folder), (str(folder),), None)
    assert study.checkpoint(None).facts.max_length == 9


def test_a_model_without_position_embeddings_has_no_limit(
    config: StudyConfig, save_checkpoint: Callable[..., Path]
) -> None:
    folder = save_checkpoint(
        "xlnet", d_model=32, n_layer=2, n_head=2, d_inner=40, max_position_embeddings=None
    )
    long = with_data(with_model(config, folder), max_length=5000)
    study = prepare_study(long, (str(folder),), None)
    assert study.checkpoint(None).facts.max_length == 5000


def test_a_limit_of_the_tokenizer_counts_too(
    config: StudyConfig, save_checkpoint: Callable[..., Path]
) -> None:
    from transformers import AutoTokenizer

    folder = save_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 7
    tokenizer.save_pretrained(folder)
    study = prepare_study(with_model(config, folder), (str(folder),), None)
    assert study.checkpoint(None).facts.max_length == 7


@pytest.fixture
def bundled_study(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[StudyConfig, Callable[[int], None]]:
    """A study on bundled data whose package can be upgraded."""
    state = {"version": 1}

    def rows(path: Path) -> list[dict[str, str]]:
        shares = {"train": range(12), "validation": range(12, 18), "test": range(18, 24)}
        return [
            {"text": f"w{i} w{state['version']}", "label": "ab"[i % 2], "split": split}
            for split, numbers in shares.items()
            for i in numbers
        ]

    monkeypatch.setattr(bundled, "_cached_rows", rows)
    data = DataConfig(path="docstrings", validation="validation", test="test")
    return dataclasses.replace(config, data=data), lambda version: state.update(version=version)


def test_bundled_data_of_an_existing_study_are_its_own_copy(
    bundled_study: Any, tmp_path: Path
) -> None:
    config, upgrade = bundled_study
    checkpoints = (config.model.checkpoint,)
    before = prepare_study(config, checkpoints, None)
    keep_study(before, tmp_path / "study")
    upgrade(2)
    fresh = prepare_study(config, checkpoints, None)
    kept = prepare_study(config, checkpoints, tmp_path / "study")
    assert fresh.facts.data.fingerprint != before.facts.data.fingerprint
    assert kept.facts == before.facts
    assert rows_of(kept, "train") == rows_of(before, "train")


def test_bundled_data_are_read_where_no_copy_was_kept(bundled_study: Any, tmp_path: Path) -> None:
    config, _ = bundled_study
    found = prepare_study(config, (config.model.checkpoint,), tmp_path / "empty")
    assert found.facts.data.num_examples == {"train": 12, "validation": 6, "test": 6}


def test_other_data_are_always_read_anew(
    config: StudyConfig, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path)
    (tmp_path / "train.csv").write_text("text,label\nw1,bad\nw2,good\nw3,bad\nw4,good\n")
    other = with_data(config, train=str(tmp_path / "train.csv"))
    found = prepare_study(other, (config.model.checkpoint,), tmp_path)
    assert found.facts.data.num_examples["train"] == 4


def test_a_kept_copy_of_other_rows_is_replaced(
    bundled_study: Any, study: PreparedStudy, tmp_path: Path
) -> None:
    keep_study(study, tmp_path)
    config, _ = bundled_study
    fresh = prepare_study(config, (config.model.checkpoint,), None)
    keep_study(fresh, tmp_path)
    assert load_saved_splits(tmp_path / "data" / "splits").facts() == fresh.facts.data


def test_what_a_study_kept_is_used_again_and_not_encoded_anew(config, tmp_path, monkeypatch):
    checkpoints = (config.model.checkpoint,)
    fresh = prepare_study(config, checkpoints, None)
    keep_study(fresh, tmp_path / "study")

    def refuse(*args, **kwargs):
        raise AssertionError("encoded anew")

    monkeypatch.setattr("automl_ft.trial.prepare.encode_to_fit", refuse)
    again = prepare_study(config, checkpoints, tmp_path / "study", known=fresh.facts)
    assert again.facts == fresh.facts
    with pytest.raises(AssertionError, match="encoded anew"):
        prepare_study(config, checkpoints, None)


def test_rows_that_changed_are_encoded_anew(config, data, tmp_path):
    checkpoints = (config.model.checkpoint,)
    fresh = prepare_study(config, checkpoints, None)
    keep_study(fresh, tmp_path / "study")
    changed = tmp_path / "train.csv"
    changed.write_text(
        Path(data.train).read_text(encoding="utf-8") + "w1 w2 w3 w4,bad\n", encoding="utf-8"
    )
    config = dataclasses.replace(config, data=dataclasses.replace(data, train=str(changed)))
    again = prepare_study(config, checkpoints, tmp_path / "study", known=fresh.facts)
    before, after = (len(study.checkpoint(None).splits["train"]) for study in (fresh, again))
    assert after == before + 1


def with_validations(config: StudyConfig, setting: int | str) -> StudyConfig:
    training = dataclasses.replace(config.training, validations_per_epoch=setting)
    return dataclasses.replace(config, training=training)


def test_auto_validations_follow_from_the_tokens(config: StudyConfig) -> None:
    study = prepare_study(with_validations(config, "auto"), (config.model.checkpoint,), None)
    splits = study.checkpoint(None).splits
    expected = choose_validations_per_epoch(
        splits["train"].num_tokens,
        splits["validation"].num_tokens,
        cost=assumed_cost("cpu", study.facts.precision, len(splits["validation"])),
    )
    assert study.facts.validations_per_epoch == study.validations_per_epoch == expected < 2


def test_a_given_number_of_validations_is_a_fact_too(config: StudyConfig) -> None:
    study = prepare_study(with_validations(config, 7), (config.model.checkpoint,), None)
    assert study.facts.validations_per_epoch == study.validations_per_epoch == 7


def test_sentences_on_what_is_not_used_are_facts(config: StudyConfig) -> None:
    training = dataclasses.replace(config.training, batching="bucketed")
    bucketed = dataclasses.replace(config, training=training)
    found = prepare_study(bucketed, (config.model.checkpoint,), None)
    (sentence,) = found.checkpoint(None).facts.fallbacks
    assert sentence.endswith("is computed for all tokens of bucketed batches.")
