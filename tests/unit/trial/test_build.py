"""A trial is built of what the model allows and the techniques say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from automl_ft.config.study import ModelConfig, StudyConfig
from automl_ft.errors import ModelError
from automl_ft.files import quota
from automl_ft.models import capabilities
from automl_ft.models.last_block import ReadBlock
from automl_ft.models.packed_model import PackedModel
from automl_ft.models.padded_model import PaddedModel
from automl_ft.trial.build import build_job
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.techniques import ALL, NONE, Techniques

DEBERTA = {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p", "position_biased_input": False,
}  # fmt: skip
XLNET = {
    "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, "hidden_size": None,
    "num_attention_heads": None, "num_hidden_layers": None, "intermediate_size": None,
    "max_position_embeddings": None,
}  # fmt: skip
PADDED: dict[str, dict[str, Any]] = {"deberta-v2": DEBERTA, "xlnet": XLNET, "mpnet": {}}


@pytest.fixture
def fresh(study: PreparedStudy) -> PreparedStudy:
    """The study as another process opens it."""
    return dataclasses.replace(study, assets={})


@pytest.fixture
def few_tokens(fresh: PreparedStudy) -> PreparedStudy:
    """The study with texts of few words, so that its vocabulary is cut."""
    (name,) = fresh.checkpoints
    opened = fresh.checkpoint(None)
    splits = {
        key: dataclasses.replace(split, input_ids=np.asarray(split.input_ids) % 30)
        for key, split in opened.splits.items()
    }
    return dataclasses.replace(
        fresh, checkpoints={name: dataclasses.replace(opened, splits=splits)}
    )


def technique(**changes: bool) -> Techniques:
    return dataclasses.replace(ALL, **changes)


def dropouts(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if hasattr(module, "p")}


def test_all_techniques_are_used_where_all_are_allowed(
    few_tokens: PreparedStudy, make_spec: Any, tmp_path: Path
) -> None:
    study = dataclasses.replace(few_tokens, cache=PrefixCache(tmp_path / "activations", 10**8))
    job = build_job(make_spec(), study)
    view = job.stepper.forward.view
    assert isinstance(view, PackedModel)
    assert isinstance(view.read_block, ReadBlock)
    assert view.stream is job.stepper.stream is not None
    assert job.cut is not None
    assert job.stepper.forward.maker.vocabulary is job.cut.vocabulary
    assert job.validation.exact.maker.vocabulary is job.cut.vocabulary
    assert job.stepper.forward.source is not None
    assert not job.batches.is_bucketed
    assert "Dropout" not in dropouts(job.compute.model)


def test_the_reference_uses_none(few_tokens: PreparedStudy, make_spec: Any, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path / "activations", 10**8)
    training = dataclasses.replace(few_tokens.config.training, precision="bf16")
    config = dataclasses.replace(few_tokens.config, training=training)
    study = dataclasses.replace(few_tokens, cache=cache, config=config)
    job = build_job(make_spec(), study, NONE)
    assert isinstance(job.stepper.forward.view, PaddedModel)
    assert job.compute.model is job.model
    assert (job.cut, job.stepper.stream, job.stepper.forward.source) == (None, None, None)
    assert not job.batches.is_bucketed
    assert dropouts(job.model) == {"Dropout"}
    assert job.model.get_input_embeddings().num_embeddings == 65


@pytest.mark.parametrize(
    ("name", "is_off"),
    [
        ("packed", lambda job: isinstance(job.stepper.forward.view, PaddedModel)),
        ("last_block", lambda job: job.stepper.forward.view.read_block is None),
        ("compact_vocabulary", lambda job: job.cut is None),
        ("cheap_dropout", lambda job: dropouts(job.model) == {"Dropout"}),
        ("prefix_cache", lambda job: job.stepper.forward.source is None),
        ("row_attention", lambda job: not job.stepper.forward.view.by_rows),
        ("fused_optimizer", lambda job: not job.optimizer.defaults["fused"]),
        ("large_validation", lambda job: not job.validation.exact.is_sorted),
    ],
)
def test_each_technique_can_be_switched_off(
    name: str,
    is_off: Callable[[Any], bool],
    few_tokens: PreparedStudy,
    make_spec: Any,
    tmp_path: Path,
) -> None:
    study = dataclasses.replace(few_tokens, cache=PrefixCache(tmp_path / "activations", 10**8))
    assert not is_off(build_job(make_spec(), study))
    assert is_off(build_job(make_spec(), study, technique(**{name: False})))


def test_training_rows_are_not_cached_where_they_are_augmented(
    fresh: PreparedStudy, make_spec: Any, tmp_path: Path
) -> None:
    study = dataclasses.replace(fresh, cache=PrefixCache(tmp_path / "activations", 10**8))
    job = build_job(make_spec(word_swap=0.2), study)
    assert job.stepper.forward.source is None
    assert job.validation.exact.source is not None


def test_a_whole_vocabulary_stays_where_rows_are_padded(
    few_tokens: PreparedStudy, make_spec: Any
) -> None:
    job = build_job(make_spec(), few_tokens, technique(packed=False))
    assert job.cut is None
    assert job.model.get_input_embeddings().num_embeddings == 65
    assert job.batches.is_bucketed


def test_a_recipe_that_does_not_fit_is_refused(study: PreparedStudy, make_spec: Any) -> None:
    with pytest.raises(ModelError, match="`frozen_layers` is 2"):
        build_job(make_spec(freezing="bottom_layers", frozen_layers=2), study)


def losses(study: PreparedStudy, run: Any, script: Any, folder: Path, **recipe: Any) -> list[float]:
    reporter = script()
    result = run(reporter, study=study, folder=folder, **{"dropout": 0.0, **recipe})
    assert result.failure is None, result.failure
    return [progress.train_loss for progress in reporter.progresses]


@pytest.mark.parametrize("name", PADDED)
def test_models_that_cannot_be_packed_use_bucketed_batches_and_say_so(
    name: str, save_checkpoint: Any, config: StudyConfig, make_spec: Any
) -> None:
    checkpoint = str(save_checkpoint(name, **PADDED[name]))
    own = dataclasses.replace(config, model=ModelConfig(checkpoint=checkpoint))
    study = prepare_study(own, (checkpoint,), None)
    job = build_job(make_spec(), study)
    assert isinstance(job.stepper.forward.view, PaddedModel)
    assert job.batches.is_bucketed
    (found,) = study.assets.values()
    packed, last = found.capabilities.notes
    assert "does not run on packed rows: batches hold rows of similar length." in packed
    assert "is computed for all tokens" in last


def fail(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("an architecture that nobody thought of")


@pytest.mark.parametrize("recipe", [{}, {"freezing": "head_only"}], ids=["none", "head_only"])
def test_a_packed_path_that_fails_gives_way_to_padding_of_the_same_batches(
    recipe: dict[str, Any],
    fresh: PreparedStudy,
    run: Any,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    wanted = dataclasses.replace(fresh, assets={})
    packed = losses(wanted, run, script, tmp_path / "packed", **recipe)
    monkeypatch.setattr(PackedModel, "scores", fail)
    found = losses(fresh, run, script, tmp_path / "broken", **recipe)
    (assets,) = fresh.assets.values()
    assert assets.capabilities.packed is None
    assert found == pytest.approx(packed, abs=1e-4)


def test_a_prefix_that_fails_is_not_stored(
    fresh: PreparedStudy, run: Any, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = {"freezing": "head_only"}
    plain = losses(dataclasses.replace(fresh, assets={}), run, script, tmp_path / "plain", **recipe)
    monkeypatch.setattr(PackedModel, "prefix", fail)
    study = dataclasses.replace(fresh, cache=PrefixCache(tmp_path / "activations", 10**8))
    found = losses(study, run, script, tmp_path / "broken", **recipe)
    (assets,) = study.assets.values()
    assert assets.capabilities.deepest_prefix == -1
    assert any("are not kept" in note for note in assets.capabilities.notes)
    assert found == pytest.approx(plain, abs=1e-4)


def test_a_top_block_that_computes_something_else_is_computed_in_full(
    fresh: PreparedStudy, run: Any, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = losses(dataclasses.replace(fresh, assets={}), run, script, tmp_path / "plain")
    own = ReadBlock.forward
    monkeypatch.setattr(ReadBlock, "forward", lambda *given: own(*given) * 1.01)
    found = losses(fresh, run, script, tmp_path / "broken")
    (assets,) = fresh.assets.values()
    assert not assets.capabilities.has_read_block
    assert found == pytest.approx(plain, abs=1e-4)


def test_a_pooled_prefix_that_computes_something_else_ends_one_block_below(
    fresh: PreparedStudy, run: Any, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = {"freezing": "head_only"}
    plain = losses(dataclasses.replace(fresh, assets={}), run, script, tmp_path / "plain", **recipe)
    own = PackedModel.scores_of_pooled
    wrong = lambda self, pooled: own(self, pooled) + 1  # noqa: E731 - it is only patched in
    monkeypatch.setattr(PackedModel, "scores_of_pooled", wrong)
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)
    study = dataclasses.replace(fresh, cache=PrefixCache(tmp_path / "activations", 10**8))
    assert losses(study, run, script, tmp_path / "broken", **recipe) == pytest.approx(
        plain, abs=1e-4
    )
    (assets,) = study.assets.values()
    assert assets.capabilities.deepest_prefix == 1
    assert "Activations of `BertForSequenceClassification` are kept up to block 1 of 2." in (
        assets.capabilities.notes
    )


def test_scores_that_are_not_finite_are_not_trusted(
    fresh: PreparedStudy, make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = capabilities._Trial._packed
    infinite = lambda *given: own(*given) * float("inf")  # noqa: E731 - it is only patched in
    monkeypatch.setattr(capabilities._Trial, "_packed", infinite)
    job = build_job(make_spec(), fresh)
    assert isinstance(job.stepper.forward.view, PaddedModel)
