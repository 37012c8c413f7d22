"""The life of a search on scripted workers: what runs, in which order, and how it is recorded."""

import math
import os
import signal

import optuna
import pytest
from optuna.trial import TrialState

from automl_ft.search.enqueue import enqueue, rerun
from automl_ft.search.events import StopReason
from automl_ft.specs.decision import Decision
from automl_ft.specs.trial import Outcome

DEFAULTS = {"learning_rate": 1e-4, "dropout": 0.1}


def falling(hyperparameters, epoch):
    """A curve on which the default recipe is the worst of all."""
    return 0.01 if hyperparameters["learning_rate"] == 1e-4 else 0.5 * epoch


def rising(hyperparameters, epoch):
    """A curve on which the default recipe is the best of all."""
    return 0.9 * epoch if hyperparameters["learning_rate"] == 1e-4 else 0.1 * epoch


def test_default_recipe_is_trial_0(lab):
    lab.search(trials=2)
    first, second = lab.trials()
    assert (first.origin, first.params) == ("default", DEFAULTS)
    assert second.origin == "sampler"
    assert second.params != DEFAULTS


def test_every_configuration_of_the_budget_is_run(lab):
    outcome = lab.search(trials=4, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE"] * 4
    assert [spec.number for spec in lab.script.specs] == [0, 1, 2, 3]


def test_a_budget_of_no_trials_only_prepares(lab):
    outcome = lab.search(trials=0)
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.script.specs == []
    (default,) = lab.trials()
    assert (default.origin, default.state) == ("default", TrialState.WAITING)
    assert lab.files.path.is_dir()


def test_default_recipe_is_trial_0_whatever_is_put_in_line(lab):
    lab.search(trials=0)
    enqueue(lab.store(), {"learning_rate": 1e-2})
    lab.search(trials=2, pruner="none")
    assert [trial.origin for trial in lab.trials()] == ["default", "user"]
    assert [spec.number for spec in lab.script.specs] == [0, 1]


def test_rerunning_a_finished_study_runs_nothing(lab):
    lab.search(trials=2, pruner="none")
    before = lab.trials()
    lab.script.specs.clear()
    outcome = lab.search(trials=2, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.script.specs == []
    assert lab.trials() == before


def test_a_larger_budget_extends_a_finished_study(lab):
    lab.search(trials=2, pruner="none")
    lab.search(trials=4, pruner="none")
    assert [spec.number for spec in lab.script.specs] == [0, 1, 2, 3]
    assert [trial.origin for trial in lab.trials()].count("default") == 1


def test_a_complete_trial_has_its_value_curve_metrics_and_costs(lab):
    lab.search(trials=1)
    (trial,) = lab.trials()
    curve = [lab.script.curve(trial.hyperparameters, epoch) for epoch in (0.5, 1.0, 1.5, 2.0)]
    assert trial.intermediate_values == dict(zip([50, 100, 150, 200], curve, strict=True))
    assert (trial.value, trial.best_step) == (curve[-1], 200)
    assert trial.metrics["validation_loss"] == 1 - curve[-1]
    assert (trial.seconds, trial.examples, trial.peak_memory_mib) == (4.0, 200, 10.0)


def test_the_value_is_that_of_the_best_validation_not_the_last(lab):
    peak = {0.5: 0.2, 1.0: 0.8, 1.5: 0.4, 2.0: 0.3}
    lab.script.curve = lambda hyperparameters, epoch: peak[epoch]
    lab.search(trials=1)
    (trial,) = lab.trials()
    assert (trial.value, trial.best_step) == (0.8, 100)


def test_workers_get_every_hyperparameter_and_the_seed_that_is_stored(lab):
    lab.search(trials=2, pruner="none")
    for spec, trial in zip(lab.script.specs, lab.trials(), strict=True):
        assert spec.hyperparameters == trial.hyperparameters
        assert {"epochs": 2, "batch_size": 16}.items() <= spec.hyperparameters.items()
        assert spec.seed == trial.seed
        assert spec.folder == str(lab.files.trial(trial.number))


def test_trials_have_seeds_of_their_own_unless_one_is_fixed(lab):
    lab.search(trials=3, pruner="none")
    seeds = [trial.seed for trial in lab.trials()]
    assert len(set(seeds)) == 3


def test_bad_trial_is_pruned_and_its_folder_deleted(lab):
    lab.script.curve = rising
    lab.search(trials=2)
    pruned = lab.trials()[1]
    assert pruned.state is TrialState.PRUNED
    assert pruned.intermediate_values == {50: 0.05}
    assert pruned.value == 0.05, "Optuna keeps the last report of a pruned trial as its value"
    assert not lab.files.trial(1).exists()
    assert [record.trial_number for record in lab.store().checkpoints.all()] == [0]


def test_default_recipe_is_not_pruned_behind_better_trials(lab):
    lab.script.curve = falling
    lab.search(trials=0)
    for rate in (1e-2, 1e-3):
        enqueue(lab.store(), {"learning_rate": rate})
    lab.search(trials=0)
    lab.script.specs.clear()
    lab.search(trials=3)
    assert [spec.number for spec in lab.script.specs] == [0], "last of all"
    assert lab.trials()[0].state is TrialState.COMPLETE
    assert [d for w in lab.script.workers for d in w.decisions][-4:] == [Decision.CONTINUE] * 4


def test_what_the_pruner_noted_is_stored_with_the_trial(lab):
    lab.script.curve = rising
    lab.search(trials=2)
    assert any(key.startswith("completed_rung") for key in lab.trials()[1].system_attrs)


def test_trial_that_the_user_ends_is_left_as_it_is(lab):
    def end(spec, index):
        if (spec.number, index) == (1, 1):
            lab.optuna().tell(1, state=TrialState.FAIL)

    lab.script.on_validation = end
    outcome = lab.search(trials=3, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    ended = lab.trials()[1]
    assert (ended.state, ended.value, ended.failure) == (TrialState.FAIL, None, None)
    assert list(ended.intermediate_values) == [50]
    assert ended.metrics == {}
    assert not lab.files.trial(1).exists()
    assert any("Trial 1 was ended by the user" in text for text in lab.listener.messages)
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_trial_that_the_user_ends_after_its_last_report_is_left_as_it_is(lab):
    real = lab.script.curve

    def end(hyperparameters, epoch):
        if epoch == 2.0 and hyperparameters["learning_rate"] != 1e-4:
            lab.optuna().tell(1, 0.125)
        return real(hyperparameters, epoch)

    lab.script.curve = end
    lab.search(trials=2, pruner="none")
    ended = lab.trials()[1]
    assert (ended.state, ended.value) == (TrialState.COMPLETE, 0.125)


def test_converged_search_stops(lab):
    lab.script.curve = rising
    outcome = lab.search(trials=50, patience=3)
    assert outcome.stop_reason is StopReason.CONVERGED
    assert len(lab.trials()) == 4


def test_exhausted_grid_stops(lab):
    grid = {"epochs": {"choices": [1, 2], "default": 1}, "batch_size": {"choices": [8, 16]}}
    grid["batch_size"]["default"] = 16
    outcome = lab.search(
        trials=50, sampler="grid", pruner="none", space={**grid, "learning_rate": 1e-3}
    )
    assert outcome.stop_reason is StopReason.EXHAUSTED
    tried = {(t.params["epochs"], t.params["batch_size"]) for t in lab.trials()}
    assert (len(lab.trials()), tried) == (4, {(1, 8), (1, 16), (2, 8), (2, 16)})


def test_enqueued_configuration_runs_next(lab):
    lab.search(trials=2, pruner="none")
    number = enqueue(lab.store(), {"learning_rate": 0.05})
    lab.search(trials=4, pruner="none")
    assert [spec.number for spec in lab.script.specs] == [0, 1, number, 3]
    trial = lab.trials()[number]
    assert (trial.origin, trial.params["learning_rate"]) == ("user", 0.05)
    assert trial.state is TrialState.COMPLETE


def test_enqueued_configuration_runs_even_if_the_budget_is_used(lab):
    lab.search(trials=1)
    enqueue(lab.store(), {"learning_rate": 0.05})
    lab.search(trials=1, pruner="none")
    assert lab.states() == ["COMPLETE", "COMPLETE"]


def test_configuration_that_is_put_in_line_during_a_search_runs_next(lab):
    def put(spec, index):
        if (spec.number, index) == (0, 2):
            enqueue(lab.store(), {"dropout": 0.3})

    lab.script.on_validation = put
    lab.search(trials=3, pruner="none")
    assert [trial.origin for trial in lab.trials()] == ["default", "user", "sampler"]


def test_rerun_repeats_a_configuration_with_another_seed_and_does_not_count(lab):
    lab.search(trials=2, pruner="none")
    number = rerun(lab.store(), 1)
    lab.search(trials=3, pruner="none")
    trials = lab.trials()
    assert number == 2
    assert trials[2].rerun_of == 1
    assert trials[2].params == trials[1].params
    assert trials[2].seed != trials[1].seed
    assert len(trials) == 4, "two configurations, one of them twice, and one more"
    assert lab.states() == ["COMPLETE"] * 4


def test_trial_that_plain_optuna_puts_in_line_is_adopted(lab):
    lab.search(trials=1)
    lab.optuna().enqueue_trial({"learning_rate": 0.01})
    lab.search(trials=2, pruner="none")
    adopted = lab.trials()[1]
    assert adopted.state is TrialState.COMPLETE
    assert adopted.params == {"learning_rate": 0.01, "dropout": 0.1}
    assert (adopted.origin, adopted.hyperparameters["epochs"]) == ("user", 2)
    assert adopted.seed is not None
    assert lab.optuna().trials[1].params == adopted.params


def test_trial_with_parameters_that_plain_optuna_adds_is_adopted(lab):
    lab.search(trials=1)
    study = lab.optuna()
    rate = study.trials[0].distributions["learning_rate"]
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params={"learning_rate": 0.02},
            distributions={"learning_rate": rate},
        )
    )
    lab.search(trials=2, pruner="none")
    assert lab.trials()[1].params == {"learning_rate": 0.02, "dropout": 0.1}
    assert lab.trials()[1].state is TrialState.COMPLETE


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"learning_rate": 5.0}, "`5.0`"),
        ({"lerning_rate": 0.1}, "Did you mean `learning_rate`"),
        ({"epochs": 7}, "`7`"),
        ({"dropout": "much"}, "`much`"),
    ],
)
def test_trial_of_plain_optuna_that_does_not_fit_fails_with_a_message(lab, params, said):
    lab.search(trials=1)
    lab.optuna().enqueue_trial(params)
    outcome = lab.search(trials=3, pruner="none")
    failed = lab.trials()[1]
    assert failed.state is TrialState.FAIL
    assert said in failed.failure.message
    assert any("Trial 1 cannot run" in text and said in text for text in lab.listener.messages)
    assert outcome.stop_reason is StopReason.TRIALS
    # It was no configuration of the space, so it does not count towards the three.
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_several_workers_run_trials_at_once(lab):
    lab.search(trials=7, workers=3, pruner="none")
    assert max(len(shot.running) for shot in lab.listener.snapshots) == 3
    assert lab.states() == ["COMPLETE"] * 7
    assert len({str(sorted(trial.params.items())) for trial in lab.trials()}) == 7
    assert len({worker.index for worker in lab.script.workers if worker.decisions}) == 3


def test_only_the_best_checkpoints_are_kept(lab):
    lab.search(trials=6, pruner="none", keep_checkpoints=2)
    ranked = sorted(lab.trials(), key=lambda trial: -trial.value)
    best = {trial.number for trial in ranked[:2]}
    kept = {record.trial_number for record in lab.store().checkpoints.all()}
    on_disk = {n for n in range(6) if (lab.files.trial(n) / "best.safetensors").exists()}
    assert kept == on_disk == best
    assert not list(lab.files.path.glob("trials/*/last.pt"))
    assert len(list(lab.files.path.glob("trials/*/validation_logits.npy"))) == 6


def test_active_seconds_add_up_over_runs(lab):
    lab.search(trials=1)
    first = lab.store().active_seconds()
    lab.search(trials=2)
    store = lab.store()
    assert store.active_seconds() > first > 0
    assert [run.ended_reason for run in store.runs()] == ["trials", "trials"]


def test_snapshot_holds_what_a_live_view_shows(lab):
    lab.script.curve = rising
    lab.search(trials=3, timeout_seconds=600)
    last = lab.listener.snapshots[-1]
    assert (last.study_name, last.objective) == ("demo", "f1_macro")
    assert last.counts == {"complete": 1, "pruned": 2, "failed": 0, "running": 0, "waiting": 0}
    assert (last.num_configurations, last.total_configurations) == (3, 3)
    assert (last.best_number, last.best_value, last.default_value) == (0, 1.8, 1.8)
    assert last.best_params == DEFAULTS
    assert (last.running, last.timeout_seconds) == ((), 600)
    assert 0 < last.active_seconds < 60


def test_snapshot_follows_the_running_trial(lab):
    lab.search(trials=1)
    views = [shot.running[0] for shot in lab.listener.snapshots if shot.running]
    assert [len(view.curve) for view in views] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert [view.fraction for view in views[1::2]] == [0.25, 0.5, 0.75, 1.0]
    assert {view.number for view in views} == {0}
    assert views[-1].train_loss == 1 - views[-1].curve[-1]
    assert [view.seconds_left for view in views[1::2]] == [None, 2.0, 1.0, 0.0]


def test_listener_is_told_of_every_trial(lab):
    lab.script.curve = rising
    lab.search(trials=2)
    assert lab.listener.started == [(0, False), (1, False)]
    ended = [(result.number, result.outcome) for result in lab.listener.results]
    assert ended == [(0, Outcome.COMPLETE), (1, Outcome.PRUNED)]


def test_a_value_of_nan_on_the_way_does_not_end_the_search(lab):
    values = {0.5: math.nan, 1.0: 0.5, 1.5: math.nan, 2.0: 0.6}
    lab.script.curve = lambda hyperparameters, epoch: values[epoch]
    lab.search(trials=2, pruner="none")
    assert lab.trials()[0].value == 0.6


def test_search_writes_nothing_outside_its_folder_and_database(bare_lab, tmp_path):
    bare_lab.search(trials=2)
    assert {path.name for path in tmp_path.iterdir()} == {"db", "files", ".files.lock"}


def test_signals_are_given_back_after_a_search(lab):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    lab.search(trials=1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_workers_are_ended_after_a_search(lab):
    lab.search(trials=1, workers=2)
    assert [(w.is_closed, w.is_killed) for w in lab.script.workers] == [(True, False)] * 2
    assert os.getpid() == lab.store().runs()[0].pid
