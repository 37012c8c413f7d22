"""The training loop: epochs, validations, decisions, early stopping, divergence, stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from automl_ft.specs.decision import Decision
from automl_ft.specs.trial import Outcome
from automl_ft.trial.build import build_job
from automl_ft.trial.checkpoint import BEST, LAST, LOGITS, load_last
from automl_ft.trial.loop import Job, fit
from automl_ft.trial.losses import DivergedError
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import restore
from automl_ft.trial.state import TrainingState


@pytest.fixture
def make_job(study: PreparedStudy, make_spec: Any) -> Callable[..., Job]:
    def make(*, study: PreparedStudy = study, **changes: Any) -> Job:
        return build_job(make_spec(**changes), study)

    return make


def scored(job: Job, *values: float) -> Job:
    """Let the validations of a job have these values, one after the other."""
    left = iter(values)
    return dataclasses.replace(job, score=lambda logits: {"f1_macro": next(left), "loss": 1.0})


def test_a_trial_runs_all_its_epochs(make_job: Any, script: Any) -> None:
    state, reporter = TrainingState(), script()
    assert fit(make_job(epochs=2), state, reporter) is Outcome.COMPLETE
    assert (state.step, state.examples_seen) == (12, 82)
    assert len(reporter.progresses) == 12


def test_seconds_of_validation_are_counted_among_all(make_job: Any, script: Any) -> None:
    job, state = make_job(), TrainingState()
    fit(job, state, script())
    assert len(state.evaluations) > 1
    assert 0 < state.seconds_validating < state.seconds
    plain = state.to_plain()
    assert TrainingState.from_plain(plain).seconds_validating == state.seconds_validating
    del plain["seconds_validating"]  # a checkpoint from before they were counted
    assert math.isnan(TrainingState.from_plain(plain).seconds_validating)


def test_progress_counts_examples_and_seconds(make_job: Any, script: Any) -> None:
    reporter = script()
    fit(make_job(epochs=1), TrainingState(), reporter)
    assert [p.examples_seen for p in reporter.progresses] == [8, 16, 24, 32, 40, 41]
    assert {p.total_examples for p in reporter.progresses} == {41}
    seconds = [p.seconds for p in reporter.progresses]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_validations_are_reported_at_nominal_examples(make_job: Any, script: Any) -> None:
    reporter = script()
    fit(make_job(epochs=2), TrainingState(), reporter)
    assert [e.step for e in reporter.evaluations] == [20, 41, 61, 82]
    assert [e.epoch for e in reporter.evaluations] == pytest.approx([20 / 41, 1, 61 / 41, 2])


def test_batch_sizes_report_at_the_same_steps(make_job: Any, script: Any) -> None:
    steps = []
    for batch_size in (4, 16):
        reporter = script()
        fit(make_job(epochs=1, batch_size=batch_size), TrainingState(), reporter)
        steps.append([e.step for e in reporter.evaluations])
    assert steps[0] == steps[1] == [20, 41]


def test_metrics_carry_their_split(make_job: Any, script: Any) -> None:
    reporter = script()
    fit(make_job(epochs=1), TrainingState(), reporter)
    names = set(reporter.evaluations[0].metrics)
    assert {"validation_f1_macro", "validation_loss", "validation_f1/odd", "train_loss"} <= names
    assert all(name.startswith(("validation_", "train_")) for name in names)


def test_the_training_loss_is_the_mean_since_the_last_validation(
    make_job: Any, script: Any
) -> None:
    reporter = script()
    fit(make_job(epochs=1), TrainingState(), reporter)
    losses = [p.train_loss for p in reporter.progresses]
    found = [e.metrics["train_loss"] for e in reporter.evaluations]
    assert found == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])


def test_training_lowers_the_loss(make_job: Any, script: Any) -> None:
    reporter = script()
    fit(make_job(epochs=8, dropout=0.0), TrainingState(), reporter)
    first, last = reporter.progresses[0].train_loss, reporter.evaluations[-1].metrics["train_loss"]
    assert last < 0.5 * first


def test_a_pruned_trial_ends_at_the_validation(make_job: Any, script: Any) -> None:
    state, reporter = TrainingState(), script(reports={2: Decision.PRUNE})
    assert fit(make_job(), state, reporter) is Outcome.PRUNED
    assert (state.epoch, state.step, len(state.evaluations)) == (0, 6, 2)


def test_a_trial_paused_at_a_validation_has_a_checkpoint(make_job: Any, script: Any) -> None:
    job, state = make_job(), TrainingState()
    assert fit(job, state, script(reports={1: Decision.PAUSE})) is Outcome.PAUSED
    saved = load_last(job.folder, job.device)
    assert saved is not None
    assert TrainingState.from_plain(saved["state"]) == state


def test_a_trial_paused_between_validations_has_a_checkpoint(make_job: Any, script: Any) -> None:
    job, state = make_job(), TrainingState()
    assert fit(job, state, script(steps={2: Decision.PAUSE})) is Outcome.PAUSED
    saved = load_last(job.folder, job.device)
    assert saved is not None
    assert TrainingState.from_plain(saved["state"]) == state
    assert (state.step, state.evaluations) == (2, [])


def test_a_pause_at_the_last_validation_is_the_end(make_job: Any, script: Any) -> None:
    reporter = script(reports={2: Decision.PAUSE}, steps={6: Decision.PAUSE})
    assert fit(make_job(epochs=1), TrainingState(), reporter) is Outcome.COMPLETE


def test_the_checkpoint_lies_there_before_the_report(make_job: Any, killed: Any) -> None:
    job = make_job()

    class Look:
        seen: list[int] = []

        def progress(self, progress: Any) -> Decision:
            return Decision.CONTINUE

        def report(self, evaluation: Any) -> Decision:
            saved = load_last(job.folder, job.device)
            assert saved is not None
            self.seen.append(saved["state"]["evaluations"][-1]["step"] - evaluation.step)
            return Decision.CONTINUE

    fit(job, TrainingState(), Look())
    assert Look.seen == [0, 0, 0, 0]


def test_early_stopping_waits_for_its_patience(make_job: Any, study_with: Any, script: Any) -> None:
    job = scored(make_job(study=study_with(early_stopping_patience=2)), 0.5, 0.4, 0.5, 0.9)
    state = TrainingState()
    assert fit(job, state, script()) is Outcome.COMPLETE
    assert (len(state.evaluations), state.best_value, state.best_step) == (3, 0.5, 20)


def test_a_gain_resets_the_patience(make_job: Any, study_with: Any, script: Any) -> None:
    job = scored(make_job(study=study_with(early_stopping_patience=2)), 0.5, 0.4, 0.6, 0.5)
    state = TrainingState()
    assert fit(job, state, script()) is Outcome.COMPLETE
    assert (len(state.evaluations), state.best_value) == (4, 0.6)


def test_without_patience_a_trial_runs_out(make_job: Any, script: Any) -> None:
    state = TrainingState()
    fit(scored(make_job(), 0.5, 0.4, 0.3, 0.2), state, script())
    assert len(state.evaluations) == 4


def test_the_value_is_that_of_the_best_validated_checkpoint(
    make_job: Any, script: Any, study: PreparedStudy
) -> None:
    job, state = make_job(epochs=4, freezing="bottom_layers", frozen_layers=1), TrainingState()
    fit(job, state, script())
    again = build_job_again(job, study)
    saved = load_file(job.folder / BEST)
    assert set(saved) == job.plan.ever_trainable()
    with torch.no_grad():
        for name, value in saved.items():
            again.model.get_parameter(name).copy_(value)
    logits = again.memory.all_scores(again.validation)
    np.testing.assert_array_equal(logits, np.load(job.folder / LOGITS))
    metrics = job.score(logits)
    assert (
        metrics["f1_macro"]
        == state.best_value
        == max(e.metrics["validation_f1_macro"] for e in state.evaluations)
    )
    assert state.best_metrics["validation_loss"] == metrics["loss"]


def build_job_again(job: Job, study: PreparedStudy) -> Job:
    """Build the same job anew, its model fresh from the checkpoint and the seed."""
    from automl_ft.specs.hyperparameters import complete
    from automl_ft.specs.trial import TrialSpec

    plain = complete({**dataclasses.asdict(job.recipe)})
    spec = TrialSpec(number=0, hyperparameters=plain, seed=7, folder=str(job.folder))
    return build_job(spec, study)


def test_a_best_model_older_than_the_end_is_not_the_last(make_job: Any, script: Any) -> None:
    job = scored(make_job(), 0.9, 0.1, 0.1, 0.1)
    fit(job, TrainingState(), script())
    name = "classifier.weight"
    assert not torch.equal(load_file(job.folder / BEST)[name], job.model.get_parameter(name))


def test_a_loss_that_is_not_finite_is_divergence(make_job: Any, script: Any) -> None:
    job = make_job()
    with torch.no_grad():
        job.model.classifier.bias.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"training loss nan .* at step 1"):
        fit(job, TrainingState(), script())


def test_a_gradient_that_is_not_finite_is_divergence(make_job: Any, script: Any) -> None:
    job = make_job()
    job.model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    before = job.model.classifier.weight.detach().clone()
    with pytest.raises(DivergedError, match="gradient norm"):
        fit(job, TrainingState(), script())
    assert torch.equal(job.model.classifier.weight, before), "a broken step was taken"


def test_a_validation_loss_that_is_not_finite_is_divergence(make_job: Any, script: Any) -> None:
    job = make_job()
    broken = dataclasses.replace(job, score=lambda logits: {"f1_macro": 0.5, "loss": math.nan})
    with pytest.raises(DivergedError, match="validation loss is nan"):
        fit(broken, TrainingState(), script())
    assert not (job.folder / LAST).exists(), "a checkpoint of a diverged model was written"


def test_an_exploded_training_loss_is_divergence(make_job: Any, script: Any) -> None:
    job, state = make_job(), TrainingState(loss_sum=1000.0, loss_steps=1)
    with pytest.raises(DivergedError, match=r"mean training loss 25\d exceeds 11 nats"):
        fit(job, state, script())


def test_gradients_are_clipped_to_the_norm(make_job: Any, script: Any) -> None:
    job = make_job(max_grad_norm=1e-3, freezing="head_only")
    norms = []

    def look(*_: Any) -> None:
        gradients = [p.grad for g in job.optimizer.param_groups for p in g["params"]]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    # The fused step clips on its way, and leaves the clipped gradients behind.
    job.optimizer.register_step_post_hook(look)
    fit(job, TrainingState(), script(reports={1: Decision.PRUNE}))
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-2)


def test_l1_makes_weights_zero(make_job: Any, script: Any) -> None:
    job = make_job(l1=1.0, learning_rate=1e-2, freezing="head_only", epochs=4)
    fit(job, TrainingState(), script())
    assert (job.model.classifier.weight == 0).any()


def test_a_frozen_part_never_changes(make_job: Any, script: Any) -> None:
    job = make_job(freezing="bottom_layers", frozen_layers=1, weight_decay=0.5, l1=0.1)
    before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    fit(job, TrainingState(), script())
    for name, parameter in job.model.named_parameters():
        is_frozen = "embeddings" in name or "layer.0." in name
        assert torch.equal(parameter, before[name]) == is_frozen, name


def test_gradual_unfreezing_reaches_every_part_in_its_turn(make_job: Any, script: Any) -> None:
    job = make_job(freezing="gradual_unfreezing", unfreezing_pace=0.5, epochs=4)
    parts = {
        "head": "classifier.weight",
        "after": "bert.pooler.dense.weight",
        "top": "bert.encoder.layer.1.output.dense.weight",
        "bottom": "bert.encoder.layer.0.output.dense.weight",
        "embeddings": "bert.embeddings.word_embeddings.weight",
    }
    previous = {
        part: job.model.get_parameter(name).detach().clone() for part, name in parts.items()
    }
    first_changed: dict[str, float] = {}

    class Watch(script):
        def progress(self, progress: Any) -> Decision:
            share = progress.examples_seen / progress.total_examples
            for part, name in parts.items():
                if not torch.equal(job.model.get_parameter(name), previous[part]):
                    first_changed.setdefault(part, share)
            return Decision.CONTINUE

    state = TrainingState()
    fit(job, state, Watch())
    assert state.stage == job.plan.num_stages - 1
    assert set(first_changed) == set(parts)
    order = ["head", "after", "top", "bottom", "embeddings"]
    assert sorted(parts, key=lambda part: first_changed[part]) == order
    shares = [first_changed[part] for part in ("head", "top", "bottom", "embeddings")]
    one_step = 8 / 164
    for share, expected in zip(shares, (0, 1 / 6, 2 / 6, 1 / 2), strict=True):
        assert expected < share <= expected + 2 * one_step


def test_the_frozen_part_stays_in_eval_mode_while_the_rest_trains(
    make_job: Any, script: Any
) -> None:
    job = make_job(freezing="bottom_layers", frozen_layers=1)
    modes = []

    class Watch(script):
        def progress(self, progress: Any) -> Decision:
            layers = job.model.bert.encoder.layer
            modes.append((layers[0].training, layers[1].training, job.model.training))
            return Decision.CONTINUE

    fit(job, TrainingState(), Watch())
    assert set(modes) == {(False, True, True)}


def test_equal_seeds_give_equal_runs_and_others_do_not(make_job: Any, script: Any) -> None:
    def losses(seed: int) -> list[float]:
        reporter = script()
        fit(make_job(seed=seed, epochs=1), TrainingState(), reporter)
        return [p.train_loss for p in reporter.progresses]

    assert losses(1) == losses(1) != losses(2)


def test_a_finished_trial_leaves_how_it_stands_and_no_tensors(make_job: Any, script: Any) -> None:
    job, state = make_job(epochs=1), TrainingState()
    assert fit(job, state, script()) is Outcome.COMPLETE
    saved = load_last(job.folder, job.device)
    assert saved is not None
    assert (saved["parameters"], saved["optimizer"]) == ({}, None)
    again = make_job(epochs=1)
    restored = restore(again, job.folder)
    assert restored == state
    reporter = script()
    assert fit(again, restored, reporter) is Outcome.COMPLETE
    assert not reporter.progresses, "a step too many"


def test_checkpoints_hold_only_what_training_may_change(make_job: Any, script: Any) -> None:
    job = make_job(freezing="head_only", epochs=1)
    fit(job, TrainingState(), script(reports={1: Decision.PAUSE}))
    saved = load_last(Path(job.folder), job.device)
    assert saved is not None
    assert (
        set(saved["parameters"])
        == job.plan.ever_trainable()
        < {name for name, _ in job.model.named_parameters()}
    )
