"""The commands besides `search`: what they ask of the Python interface and what they print."""

import csv
import io
import json
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from automl_ft.storage.studies import StudySummary


def summary(**changes):
    values = {
        "name": "demo",
        "is_foreign": False,
        "config": None,
        "objective": "f1_macro",
        "created_at": None,
        "num_trials": {TrialState.COMPLETE: 3, TrialState.PRUNED: 1},
        "best_value": 0.8611,
    }
    return StudySummary(**{**values, **changes})


class TestStudies:
    def test_studies_are_listed_with_their_counts(self, api, run, make):
        record = make.make_record()
        api.summaries = [summary(config=record.config, created_at=record.created_at)]
        row = json.loads(run("studies", "--format", "json").out)[0]
        assert (row["study"], row["best"], row["trials"], row["pruned"]) == ("demo", 0.8611, 4, 1)
        assert (row["model"], row["data"]) == ("minilm-l6", "docstrings")
        assert "2026-01-02 03:04" in run("studies").out

    def test_several_files_are_listed_together(self, api, run, make):
        config = make.make_config()
        config = replace(config, data=replace(config.data, path=("a.csv", "b.csv")))
        api.summaries = [summary(config=config)]
        assert json.loads(run("studies", "--format", "json").out)[0]["data"] == "a.csv, b.csv"

    def test_a_study_of_plain_optuna_is_marked(self, api, run):
        api.summaries = [summary(is_foreign=True, objective=None, best_value=None)]
        assert "(plain Optuna)" in run("studies").out

    def test_an_empty_database_says_how_to_begin(self, api, run):
        ran = run("studies")
        assert (ran.code, ran.out) == (0, "")
        assert "automl-ft search demo" in ran.err

    def test_an_empty_database_is_an_empty_list_for_scripts(self, api, run):
        assert json.loads(run("studies", "--format", "json").out) == []

    def test_the_database_is_the_one_that_was_named(self, api, run):
        run("studies", "--storage", "sqlite:///x.db")
        assert api.loaded == ["sqlite:///x.db"]


class TestShow:
    def test_the_ranking_has_values_parameters_cost_and_state(self, api, run, make):
        api.study.trials = [make.make_trial(0), make.make_failed_trial(1)]
        lines = run("show", "demo").out.splitlines()
        best = next(line for line in lines if line.startswith("1 "))
        for part in ("0.8432", "complete", "41s", "12,000", "default", "3.12e-05"):
            assert part in best
        assert any("failed" in line for line in lines)

    def test_the_table_has_a_head_and_the_verdict(self, api, run):
        out = run("show", "demo").out
        assert "demo, by f1_macro on the validation split" in out
        assert "1,234 train, 400 validation" in out
        assert "2 complete" in out
        assert "it beats the default recipe on these rows." in out

    def test_top_limits_the_rows(self, api, run):
        ran = run("show", "demo", "--top", 1)
        assert "0.8432" not in ran.out.split("it beats")[0].split("Trial 1")[0]
        assert "1 trial more" in ran.err

    def test_scripts_get_all_rows(self, api, run, make):
        api.study.trials = [make.make_trial(n) for n in range(30)]
        assert len(json.loads(run("show", "demo", "--format", "json").out)) == 30
        assert len(run("show", "demo", "--format", "csv").out.splitlines()) == 31
        assert "10 trials more" in run("show", "demo").err

    def test_a_pruned_trial_shows_how_far_it_came(self, api, run, make):
        pruned = make.make_trial(1, state=TrialState.PRUNED, value=None)
        api.study.trials = [pruned]
        row = json.loads(run("show", "demo", "--format", "json").out)[0]
        assert (row["rank"], row["value"], row["state"]) == (None, 0.8432, "pruned")

    def test_a_study_without_trials_has_a_head_only(self, api, run):
        api.study.trials = []
        ran = run("show", "demo")
        assert (ran.code, "no trial yet" in ran.out) == (0, True)

    def test_a_study_file_names_study_and_database(self, api, run, tmp_path):
        text = "name: mine\nmodel: m\ndata: d\nstorage: sqlite:///mine.db\n"
        (tmp_path / "mine.yaml").write_text(text)
        run("show", "mine.yaml")
        run("show", "mine.yaml", "--storage", "sqlite:///other.db")
        assert api.loaded == [("mine", "sqlite:///mine.db"), ("mine", "sqlite:///other.db")]

    def test_one_trial_has_parameters_curve_metrics_and_cost(self, api, run):
        out = run("show", "demo", "--trial", 0).out
        for part in (
            "0 of study demo: complete, rank 2",
            "the default recipe; seed 7",
            "0.8432 at 200 examples",
            "\u2581\u2588  0.5000 0.8432",
            "41s, 12,000 examples, 900 MiB at most",
            "validation_accuracy",
            "ended 2026-01-02",
        ):
            assert part in out
        rows = [line.split() for line in out.splitlines()]
        assert ["learning_rate", "3.12e-05", "sampled"] in rows
        assert ["epochs", "3", "fixed"] in rows
        assert ["good", "0.9200", "0.9300", "0.9100"] in rows

    def test_a_failed_trial_shows_its_traceback(self, api, run, make):
        api.study.trials = [make.make_failed_trial(0)]
        out = run("show", "demo", "--trial", 0).out
        assert "out of memory: no memory left" in out
        assert "Traceback: here" in out
        assert "not validated" in out

    def test_a_waiting_trial_of_plain_optuna_can_be_shown(self, api, run, make):
        api.study.trials = [
            make.make_trial(
                0,
                state=TrialState.WAITING,
                hyperparameters={},
                value=None,
                intermediate_values={},
                metrics={},
                seconds=None,
                examples=None,
                peak_memory_mib=None,
                started=None,
                ended=None,
                seed=None,
                origin=None,
                best_step=None,
            )
        ]
        out = run("show", "demo", "--trial", 0).out
        assert "waiting" in out
        assert "-, - examples, - at most" in out

    def test_a_rerun_names_its_trial(self, api, run, make):
        api.study.trials = [make.make_trial(0, rerun_of=4, origin="user", ended=None)]
        out = run("show", "demo", "--trial", 0).out
        assert "put in line by the user, a rerun of trial 4" in out

    def test_a_long_curve_shows_its_last_values(self, api, run, make):
        values = {step: step / 100 for step in range(30)}
        api.study.trials = [make.make_trial(0, intermediate_values=values)]
        out = run("show", "demo", "--trial", 0).out
        assert "... 0.1800" in out
        assert "0.0100" not in out

    def test_one_trial_as_json_holds_everything(self, api, run, make):
        api.study.trials = [make.make_failed_trial(0)]
        read = json.loads(run("show", "demo", "--trial", 0, "--format", "json").out)
        assert read["hyperparameters"]["epochs"] == 3
        assert read["failure"] == "out_of_memory"
        assert read["failure_traceback"] == "Traceback: here"

    def test_one_trial_as_csv_has_a_line_for_each_value(self, api, run):
        text = run("show", "demo", "--trial", 0, "--format", "csv").out
        read = dict(list(csv.reader(io.StringIO(text)))[1:])
        assert read["hyperparameters.epochs"] == "3"
        assert read["curve.200"] == "0.8432"

    def test_a_trial_that_is_not_there_is_refused(self, api, run):
        ran = run("show", "demo", "--trial", 7)
        assert ran.code == 2
        assert "has no trial 7; accepted is 0 to 1." in ran.err

    def test_no_trial_can_be_shown_of_an_empty_study(self, api, run):
        api.study.trials = []
        assert "it has no trial yet" in run("show", "demo", "--trial", 0).err


class TestExport:
    def test_the_best_trial_is_exported_and_its_folder_printed(self, api, run, tmp_path):
        ran = run("export", "demo", "--to", tmp_path / "best")
        assert api.study.done == [("export", tmp_path / "best", None, False)]
        assert ran.out == f"{tmp_path / 'best'}\n"
        assert "automl-ft predict" in ran.err

    def test_a_trial_can_be_chosen_and_replaced(self, api, run, tmp_path):
        run("export", "demo", "--to", tmp_path, "--trial", 3, "--force")
        assert api.study.done == [("export", tmp_path, 3, True)]

    def test_a_folder_must_be_named(self, api, run):
        assert run("export", "demo").code == 2


class TestEnqueue:
    def test_a_configuration_is_put_in_line_with_typed_values(self, api, run):
        ran = run("enqueue", "demo", "learning_rate=3e-5", "epochs=4", "freezing=none")
        params = {"learning_rate": 3e-5, "epochs": 4, "freezing": "none"}
        assert api.study.done == [("enqueue", params)]
        assert "trial 9 of study demo is next in line" in ran.out

    def test_a_number_reruns_that_trial(self, api, run):
        ran = run("enqueue", "demo", "3")
        assert api.study.done == [("rerun", 3)]
        assert "trial 3 again" in ran.out

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (("learning_rate",), "`learning_rate` is not accepted"),
            (("=3",), "`=3` is not accepted"),
            (("3", "epochs=4"), "`3` is not accepted"),
            (("epochs=4", "epochs=5"), "given twice"),
            (("epochs=[",), "argument epochs"),
            ((), "Missing argument"),
        ],
    )
    def test_other_values_are_refused(self, api, run, values, message):
        ran = run("enqueue", "demo", *values)
        assert ran.code == 2
        assert message in ran.err
        assert api.study.done == []


class TestDelete:
    @pytest.fixture
    def terminal(self, monkeypatch):
        def answer(text):
            stream = io.StringIO(text)
            stream.isatty = lambda: True
            monkeypatch.setattr("sys.stdin", stream)

        return answer

    def test_yes_deletes_without_asking(self, api, run, tmp_path):
        (tmp_path / "file").write_bytes(b"x" * 2048)
        api.study.folder = tmp_path
        ran = run("delete", "demo", "--yes")
        assert api.study.done == [("delete",)]
        assert ran.out == f"deleted study demo: 2 trials, 2.0 KiB in {tmp_path}\n"

    def test_where_nobody_can_be_asked_yes_is_needed(self, api, run, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        ran = run("delete", "demo")
        assert (ran.code, api.study.done) == (2, [])
        assert "Give --yes" in ran.err

    @pytest.mark.parametrize(("text", "code", "done"), [("y\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0)])
    def test_the_answer_decides(self, api, run, terminal, text, code, done):
        terminal(text)
        ran = run("delete", "demo")
        assert (ran.code, len(api.study.done)) == (code, done)
        assert "Delete study demo" in ran.err


class TestSpaces:
    def test_all_shipped_spaces_are_listed(self, run):
        names = [row["space"] for row in json.loads(run("spaces", "--format", "json").out)]
        assert names == ["full", "low_data", "quick", "text_classification"]

    def test_one_space_is_shown_in_full(self, run):
        rows = json.loads(run("spaces", "text_classification", "--format", "json").out)
        by_name = {row["parameter"]: row for row in rows}
        assert "log" in by_name["learning_rate"]["range"]
        assert "with freezing = head_only" in by_name["learning_rate"]["prior"]
        assert by_name["frozen_layers"]["when"] == "only with freezing = bottom_layers"
        assert all(row["source"] for row in rows)
        assert "Default" in run("spaces", "text_classification").out

    def test_a_space_of_the_users_own_is_read(self, run, tmp_path):
        text = "dropout: {low: 0.0, high: 0.4, step: 0.2, default: 0.2, source: mine}\nepochs: 3\n"
        (tmp_path / "mine.yaml").write_text(text)
        rows = json.loads(run("spaces", "mine.yaml", "--format", "json").out)
        assert [row["range"] for row in rows] == ["0 to 0.4, step 0.2", "fixed"]
        assert "no description" in run("spaces", "mine.yaml").out

    def test_an_unknown_space_is_refused(self, run):
        ran = run("spaces", "quik")
        assert ran.code == 2
        assert "Did you mean `quick`?" in ran.err


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_calls_our_variable(self, run, shell):
        ran = run("completion", shell)
        assert ran.code == 0
        assert "_AUTOML_FT_COMPLETE" in ran.out

    def test_without_a_name_the_shell_of_the_user_counts(self, run, monkeypatch):
        monkeypatch.setenv("SHELL", "/usr/bin/fish")
        assert "fish" in run("completion").out

    def test_an_unknown_shell_is_refused(self, run, monkeypatch):
        monkeypatch.setenv("SHELL", "/bin/tcsh")
        ran = run("completion")
        assert ran.code == 2
        assert "`tcsh`" in ran.err
