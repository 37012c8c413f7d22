import io
import sys

import pytest
from optuna.trial import TrialState

from automl_ft.cli import search
from automl_ft.cli.live import LiveListener
from automl_ft.cli.plain import PlainListener
from automl_ft.search.events import StopReason

NEEDED = ("--model", "minilm-l6", "--data", "rows.csv")


def asked(api):
    config, origins = api.searched[0]
    return config, origins


def test_every_option_reaches_its_key(api, run):
    ran = run(
        "search",
        *("--name", "n", "--task", "text-classification", "--model", "m", "--revision", "r"),
        *("--data", "d.csv", "--text", "a,b", "--label", "l", "--validation", "0.3"),
        *("--test", "none", "--space", "quick", "--objective", "f1_binary"),
        *("--positive-label", "yes", "--sampler", "gp", "--pruner", "none", "--trials", 5),
        *("--timeout", "30m", "--patience", 4, "--seed", 3, "--device", "cpu", "--workers", 2),
        *("--storage", "sqlite:///a.db", "--output", "out"),
    )
    config, origins = asked(api)
    assert ran.code == 0
    assert (config.model.checkpoint, config.model.revision) == ("m", "r")
    assert (config.data.path, config.data.text, config.data.label) == ("d.csv", ("a", "b"), "l")
    assert (config.data.validation, config.data.test) == (0.3, None)
    assert (config.objective, config.positive_label) == ("f1_binary", "yes")
    assert (config.sampler, config.pruner, config.space) == ("gp", "none", "quick")
    assert (config.budget.trials, config.budget.patience) == (5, 4)
    assert config.budget.timeout_seconds == 1800
    assert (config.name, config.seed, config.device, config.workers) == ("n", 3, "cpu", 2)
    assert (config.storage, config.output) == ("sqlite:///a.db", "out")
    assert origins["budget.trials"] == "option"


def test_the_number_of_workers_may_be_left_to_a_measurement(api, run):
    assert run("search", *NEEDED, "--workers", "auto").code == 0
    assert asked(api)[0].workers == "auto"


def test_model_data_text_and_label_are_a_complete_command(api, run):
    ran = run("search", *NEEDED, "--text", "review", "--label", "stars")
    assert ran.code == 0
    assert asked(api)[0].data.text == ("review",)


def test_text_and_data_can_be_repeated(api, run):
    run("search", "--model", "m", "--data", "a", "--data", "b", "--text", "p", "--text", "q")
    config, _ = asked(api)
    assert (config.data.path, config.data.text) == (("a", "b"), ("p", "q"))


def test_a_split_may_be_named(api, run):
    run("search", *NEEDED, "--validation", "dev", "--test", "held.csv")
    config, _ = asked(api)
    assert (config.data.validation, config.data.test) == ("dev", "held.csv")


def test_set_takes_any_key_with_a_yaml_value(api, run):
    run("search", *NEEDED, "--set", "training.precision=fp32", "--set", "data.text=[x, y]")
    config, origins = asked(api)
    assert (config.training.precision, config.data.text) == ("fp32", ("x", "y"))
    assert origins["training.precision"] == "option"


def test_an_option_wins_over_the_file(api, run):
    ran = run("search", "demo", "--trials", 3)
    config, origins = asked(api)
    assert (config.budget.trials, config.space) == (3, "quick")
    assert ran.code == 0
    assert origins["budget.trials"] == "option"
    assert origins["space"].endswith("demo.yaml")


def test_settings_are_printed_with_their_origin_on_stderr(api, run):
    ran = run("search", "demo", "--trials", 3)
    line = next(line for line in ran.err.splitlines() if line.startswith("budget.trials"))
    assert line.split() == ["budget.trials", "3", "option"]
    assert "sampler=tpe" in next(x for x in ran.err.splitlines() if x.startswith("default:"))
    assert "positive_label" in next(x for x in ran.err.splitlines() if x.startswith("not set:"))


def test_a_password_is_never_printed(api, run):
    ran = run("search", "demo", "--storage", "postgresql://me:secret@host/db")
    assert "secret" not in ran.err + ran.out
    assert "--storage URL" in ran.err


def test_the_ranking_and_the_verdict_go_to_stdout(api, run):
    ran = run("search", "demo")
    assert "0.8611" in ran.out
    assert "default recipe" in ran.out
    assert "setting" not in ran.out


def test_next_steps_name_the_database_where_it_is_not_the_default(api, run):
    ran = run("search", "demo", "--storage", "sqlite:///a b.db")
    assert "automl-ft export demo --to best/ --storage 'sqlite:///a b.db'" in ran.err
    assert "--storage" not in run("search", "demo").err


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (StopReason.TRIALS, "budget of 12 configurations"),
        (StopReason.TIMEOUT, "budget of 4m 00s"),
        (StopReason.CONVERGED, "2 trials in a row"),
        (StopReason.EXHAUSTED, "grid"),
    ],
)
def test_the_end_of_a_search_has_its_reason(api, run, reason, words):
    api.stop_reason = reason
    ran = run("search", "demo", "--patience", 2)
    assert ran.code == 0
    assert words in ran.err


def test_an_interrupted_search_ends_with_130_and_the_ranking_so_far(api, run):
    api.stop_reason = StopReason.INTERRUPTED
    ran = run("search", "demo")
    assert ran.code == 130
    assert "0.8611" in ran.out
    assert "goes on" in ran.err


def test_an_interrupt_before_there_is_a_study_ends_with_130(api, run):
    api.stop_reason, api.folder = StopReason.INTERRUPTED, None
    ran = run("search", "demo")
    assert (ran.code, ran.out, api.loaded) == (130, "", [])


def test_a_failed_trial_makes_the_exit_code_1(api, run, make):
    api.during = lambda listener: listener.trial_ended(make.make_snapshot(), make.failed_result(5))
    ran = run("search", "demo")
    assert ran.code == 1
    assert "automl-ft show demo --trial 5" in ran.err


def test_a_study_whose_trials_all_failed_before_ends_with_1(api, run, make):
    api.study.trials = [make.make_failed_trial(0)]
    ran = run("search", "demo")
    assert ran.code == 1
    assert "No trial of this study is complete." in ran.err


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.WAITING, TrialState.RUNNING])
def test_a_study_with_a_trial_that_is_or_may_be_complete_ends_with_0(api, run, make, state):
    value = 0.8 if state is TrialState.COMPLETE else None
    api.study.trials = [make.make_failed_trial(0), make.make_trial(1, state=state, value=value)]
    ran = run("search", "demo")
    assert ran.code == 0
    assert "No trial of this study" not in ran.err


def test_more_than_ten_trials_are_counted(api, run, make):
    api.study.trials = [make.make_trial(n) for n in range(12)]
    assert "2 trials more" in run("search", "demo").err


def test_a_study_without_trials_ends_without_a_table(api, run):
    api.study.trials = []
    ran = run("search", "demo", "--trials", 0)
    assert (ran.code, ran.out) == (0, "")
    assert "export" not in ran.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("demo", "--trials", "-1"), "option --trials: `-1` is not accepted"),
        (("demo", "--seed", 2**64), "option --seed: `18446744073709551616` is not accepted"),
        (("demo", "--set", "training.threads=99999"), "accepted is 1 to 1024"),
        (("demo", "--timeout", "soon"), "option --timeout: `soon` is no duration"),
        (("demo", "--name", "a/b"), "option --name: `a/b`"),
        (("demo", "--sampler", "tpee"), "Did you mean `tpe`?"),
        (("demo", "--set", "budget"), "option --set: `budget` is not accepted"),
        (("demo", "--set", "data.text=[a"), "option --set data.text"),
        (("demo", "--set", "training.precisio=fp32"), "Did you mean `precision`?"),
        (("--data", "d.csv"), "option --model: missing"),
        (("nothing.yaml",), "nothing.yaml"),
        ((), "Nothing to search is named"),
        (("demo", "--trials", "many"), "--trials"),
        (("demo", "--trails", "3"), "--trials"),
    ],
)
def test_bad_usage_ends_with_2_before_anything_is_searched(api, run, words, expected):
    ran = run("search", *words)
    assert ran.code == 2
    assert expected in ran.err
    assert (ran.out, api.searched) == ("", [])


def test_all_problems_of_options_come_in_one_message(api, run):
    ran = run("search", "demo", "--workers", "some")
    assert ran.code == 2
    assert "--workers: `some` is not accepted; accepted: auto, or a whole number" in ran.err
    ran = run("search", "demo", "--trials", "-1", "--workers", "0")
    assert "--trials" in ran.err
    assert "--workers" in ran.err


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_the_live_view(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    monkeypatch.setattr(sys, "stderr", _Terminal())
    assert isinstance(search._listener(), LiveListener)


@pytest.mark.parametrize("pipe", ["stdout", "stderr"])
def test_where_either_stream_is_a_pipe_lines_are_plain(monkeypatch, pipe):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO() if name == pipe else _Terminal())
    assert isinstance(search._listener(), PlainListener)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    monkeypatch.setattr(sys, "stderr", _Terminal())
    assert isinstance(search._listener(), PlainListener)


def test_a_stored_study_goes_on_by_its_name(tmp_path, monkeypatch):
    """The real way, up to the engine: its settings come from the database, options win."""
    import automl_ft.api as api
    from automl_ft.cli.search import _stored

    class Found:
        class record:  # noqa: N801
            config = "the stored settings"

        def close(self):
            asked.append("closed")

    asked = []

    def load_study(name, *, storage):
        asked.append((name, storage))
        return Found()

    monkeypatch.setattr(api, "load_study", load_study)
    assert _stored("mine", "sqlite:///x.db") == "the stored settings"
    assert asked == [("mine", "sqlite:///x.db"), "closed"]
    for other in (None, "demo", "folder/mine", "mine.yaml", str(tmp_path)):
        assert _stored(other, None) is None
