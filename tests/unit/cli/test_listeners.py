"""The live view and the plain lines: what they show of a search."""

import dataclasses
import io
import math

import pytest
from rich.console import Console

from automl_ft.cli.live import LiveListener, panel
from automl_ft.cli.narrate import (
    best_line,
    counts_line,
    ended_line,
    facts_lines,
    seconds_left,
    written_training,
)
from automl_ft.cli.plain import PlainListener
from automl_ft.search.events import RunningTrial
from automl_ft.specs.trial import Outcome


def draw(snapshot, width=80, **options):
    target = Console(file=io.StringIO(), width=width, highlight=False, **options)
    target.print(panel(snapshot))
    return target.file.getvalue()


@pytest.fixture
def plain():
    stream = io.StringIO()
    return PlainListener(stream), stream


@pytest.fixture
def live():
    target = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    return LiveListener(target), target.file


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_panel_fits_the_terminal(make, width):
    assert max(map(len, draw(make.make_snapshot(), width).splitlines())) <= width


def test_the_panel_shows_budget_counts_trial_and_best(make):
    text = draw(make.make_snapshot())
    assert "8 of 12 configurations, 1m 12s of 4m 00s" in text
    assert "4 complete, 2 pruned, 1 failed, 1 running" in text
    assert "trial 7" in text
    assert "62% 12s left" in text
    assert "f1_macro \u2581\u2584\u2588 0.7100, training loss 0.412" in text
    assert "learning_rate=3.12e-05" in text
    assert "0.8611 by trial 3, +0.0179 against the default recipe (0.8432)" in text


def test_the_panel_in_ascii_has_no_block_characters(make):
    raw = io.BytesIO()
    target = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    target.print(panel(make.make_snapshot()))
    target.file.flush()
    assert b"f1_macro" in raw.getvalue()


def test_the_panel_honours_no_color(make, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = draw(make.make_snapshot(), force_terminal=True)
    assert "\x1b[3" not in text.replace("\x1b[3m", "")


def test_many_running_trials_are_cut_short(make):
    trials = tuple(
        RunningTrial(
            number=n,
            worker=n,
            params={"epochs": 3},
            curve=(),
            fraction=0.0,
            train_loss=None,
            seconds=0.0,
            seconds_left=None,
        )
        for n in range(9)
    )
    text = draw(make.make_snapshot(running=trials, best_params={}))
    assert "and 3 more running" in text
    assert "not validated yet" in text
    assert "epochs=3" not in text


@pytest.fixture
def group(make):
    """A snapshot of eight trials in one worker and another trial."""

    def running(number, worker, curve):
        return RunningTrial(
            number=number,
            worker=worker,
            params={"epochs": 3},
            curve=curve,
            fraction=0.25 if worker else 0.5,
            train_loss=None,
            seconds=1.0,
            seconds_left=3.0,
        )

    together = [running(n, 1, (math.nan, n / 100)) for n in range(12, 20)]
    return make.make_snapshot(running=(running(11, 0, (0.5,)), *together))


def test_trials_of_one_worker_are_shown_as_one(group):
    text = draw(group)
    assert "8 trials" in text
    assert "25% 3.0s left" in text
    assert "trials 12-19: head only, trained together, f1_macro up to 0.1900" in text
    assert "trial 11" in text
    assert "more running" not in text
    assert "trial 12 " not in text


def test_group_before_its_first_validation(group):
    fresh = [dataclasses.replace(trial, curve=()) for trial in group.running[-2:]]
    text = draw(dataclasses.replace(group, running=tuple(fresh)))
    assert "trials 18-19: head only, trained together, not validated yet" in text


def test_plain_lines_tell_which_trials_run_together(plain, group):
    listener, stream = plain
    listener.trial_started(group, 12, is_resumed=False)
    listener.trial_started(group, 11, is_resumed=False)
    first, second = stream.getvalue().splitlines()
    assert first.endswith("trial 12 started together with trials 13-19: epochs=3")
    assert second.endswith("trial 11 started: epochs=3")


def test_before_anything_is_known_the_panel_says_so(make):
    snapshot = make.make_snapshot(
        counts={"complete": 0},
        running=(),
        best_number=None,
        best_value=None,
        best_params={},
        default_value=None,
        timeout_seconds=None,
        total_configurations=0,
    )
    text = draw(snapshot)
    assert "no trial yet" in text
    assert "no complete trial yet" in text
    assert "100%" in text


def test_the_live_view_logs_ended_trials_with_word_and_symbol(live, make):
    listener, stream = live
    with listener:
        listener.trial_started(make.make_snapshot(), 7, is_resumed=False)
        listener.trial_ended(make.make_snapshot(), make.make_result(3))
        listener.trial_ended(make.make_snapshot(), make.make_result(4, Outcome.PRUNED, 0.5))
        listener.trial_ended(make.make_snapshot(), make.failed_result(5))
    text = stream.getvalue()
    assert "\u2713 trial 3 complete after 41s: f1_macro 0.8611 (best so far)" in text
    assert "trial 4 pruned after 41s: f1_macro 0.5000" in text
    assert "\u2717 trial 5 failed after 41s: out of memory: no memory left" in text
    assert [result.number for result in listener.failures] == [5]


def test_an_ended_trial_is_never_drawn_as_running_too(make):
    target = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    listener = LiveListener(target)
    with listener:
        listener.trial_started(make.make_snapshot(), 7, is_resumed=False)
        listener._live.refresh()  # a frame, which else comes some time later
        listener.trial_ended(make.make_snapshot(running=()), make.make_result(7))
        text = target.file.getvalue()
    assert "trial 7 complete" in text
    assert "training loss" in text.partition("trial 7 complete")[0]
    assert "training loss" not in text.partition("trial 7 complete")[2]


def test_the_live_view_prints_facts_notes_and_messages(live, make):
    listener, stream = live
    with listener:
        listener.preparing("reading data")
        listener.prepared(make.make_facts(), is_resumed=True)
        listener.message("Stopping.")
    text = stream.getvalue()
    assert "1,234 train, 400 validation rows" in text
    assert "3 texts are empty." in text
    assert "exists and goes on" in text
    assert "Stopping." in text


@pytest.mark.parametrize("is_resumed", [False, True])
def test_what_models_do_not_allow_is_said_once(live, plain, make, is_resumed):
    facts = make.make_facts()
    (model,) = facts.checkpoints
    models = (
        dataclasses.replace(model, fallbacks=("`A` is not packed.", "`A` is not cached.")),
        dataclasses.replace(model, checkpoint="other", fallbacks=("`A` is not packed.",)),
    )
    for listener, stream in (live, plain):
        with listener:
            listener.prepared(dataclasses.replace(facts, checkpoints=models), is_resumed=is_resumed)
        text = stream.getvalue()
        assert text.count("`A` is not packed.") == text.count("`A` is not cached.") == 1


def test_plain_lines_tell_each_event_on_one_line(plain, make):
    listener, stream = plain
    with listener:
        listener.preparing("reading data")
        listener.prepared(make.make_facts(), is_resumed=False)
        listener.trial_started(make.make_snapshot(), 7, is_resumed=False)
        listener.trial_ended(make.make_snapshot(), make.make_result(7, Outcome.PRUNED, 0.5))
        listener.message("Stopping.")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "preparing: reading data"
    assert "study: new" in lines
    params = "learning_rate=3.12e-05 batch_size=16 freezing=none"
    assert f"[8/12, 1m 12s] trial 7 started: {params}" in lines
    assert f"[8/12, 1m 12s] trial 7 pruned after 41s: f1_macro 0.5000, {params}" in lines
    assert lines[-1] == "Stopping."


def test_plain_lines_tell_a_new_best_and_a_failure(plain, make):
    listener, stream = plain
    listener.trial_ended(make.make_snapshot(), make.make_result(3))
    listener.trial_ended(make.make_snapshot(), make.failed_result(5))
    assert "best: 0.8611 by trial 3" in stream.getvalue()
    assert [result.number for result in listener.failures] == [5]


def test_plain_lines_hold_no_control_characters(plain, make):
    listener, stream = plain
    listener.message("red \x1b[31m and a bell \x07")
    listener.trial_ended(make.make_snapshot(), make.failed_result(5, "a\tb\x1b[0m"))
    assert all(c.isprintable() or c == "\n" for c in stream.getvalue())


def test_a_resumed_trial_goes_on(plain, make):
    listener, stream = plain
    listener.trial_started(make.make_snapshot(running=()), 4, is_resumed=True)
    assert stream.getvalue() == "[8/12, 1m 12s] trial 4 goes on\n"


def test_a_validation_is_told_only_after_a_long_silence(plain, make):
    listener, stream = plain
    listener.trial_started(make.make_snapshot(active_seconds=0.0), 7, is_resumed=False)
    more = RunningTrial(
        number=7,
        worker=0,
        params={},
        curve=(0.3, 0.5, 0.71, 0.8),
        fraction=0.8,
        train_loss=None,
        seconds=9.0,
        seconds_left=5.0,
    )
    listener.changed(make.make_snapshot(active_seconds=10.0, running=(more,)))
    assert len(stream.getvalue().splitlines()) == 1
    last = RunningTrial(
        number=7,
        worker=0,
        params={},
        curve=(0.3, 0.5, 0.71, 0.8, 0.9),
        fraction=0.9,
        train_loss=None,
        seconds=9.0,
        seconds_left=5.0,
    )
    listener.changed(make.make_snapshot(active_seconds=100.0, running=(last,)))
    assert stream.getvalue().splitlines()[1].endswith("trial 7 at 90%: f1_macro 0.9000, 5.0s left")


def test_the_time_left_is_bounded_by_the_budget(make):
    assert seconds_left(make.make_snapshot(active_seconds=239.0)) == 1.0
    assert seconds_left(make.make_snapshot(active_seconds=300.0)) == 0.0


def test_the_time_left_follows_from_the_cost_so_far(make):
    snapshot = make.make_snapshot(
        timeout_seconds=None, running=(), counts={"complete": 3, "pruned": 1}, active_seconds=40.0
    )
    assert seconds_left(snapshot) == pytest.approx(80.0)


def test_before_a_trial_is_finished_no_time_is_left_to_tell(make):
    assert seconds_left(make.make_snapshot(timeout_seconds=None, counts={})) is None


def test_the_best_line_knows_the_default_recipe(make):
    assert best_line(make.make_snapshot(default_value=None)) == "0.8611 by trial 3"
    default = make.make_snapshot(best_number=0, best_value=0.8432)
    assert best_line(default) == "0.8432 by trial 0, the default recipe"


def test_states_without_trials_are_left_out_of_the_counts(make):
    assert counts_line(make.make_snapshot(counts={"complete": 2, "failed": 0})) == "2 complete"


def test_a_failure_without_a_message_is_told(make):
    line = ended_line(make.make_snapshot(), make.failed_result(5, " "))
    assert line.endswith("out of memory: no message")


def test_a_trial_without_a_value_was_not_validated(make):
    result = make.make_result(4, Outcome.PAUSED, None)
    assert ended_line(make.make_snapshot(), result).endswith("not validated yet")
    unbegun = dataclasses.replace(result, cost=dataclasses.replace(result.cost, examples=0))
    assert ended_line(make.make_snapshot(), unbegun).endswith("not begun")


def test_many_classes_are_cut_short(make):
    facts = make.make_facts(labels=tuple("abcdefgh"))
    assert "8 classes: a, b, c, d, e, f, ..." in facts_lines(facts, is_resumed=False)[0]


def test_cut_rows_are_told_with_the_model(make):
    assert "128 tokens (1 row cut)" in facts_lines(make.make_facts(), is_resumed=False)[1]


def test_facts_tell_how_often_a_model_is_validated(make):
    facts = dataclasses.replace(make.make_facts(), validations_per_epoch=0.5)
    assert "validation: every 2 epochs" in facts_lines(facts, is_resumed=False)


def test_facts_tell_what_the_engine_chose(make):
    facts = dataclasses.replace(make.make_facts(), precision="bf16")
    (line,) = (x for x in facts_lines(facts, is_resumed=False) if x.startswith("training: "))
    assert "bf16 with fp32 parameters" in line
    assert "packed end to end" in line


def test_models_that_train_on_other_batches_are_told_apart(make):
    facts = make.make_facts()
    (model,) = facts.checkpoints
    other = dataclasses.replace(model, checkpoint="deberta", batching="bucketed")
    facts = dataclasses.replace(facts, precision="fp32", checkpoints=(model, other))
    written = written_training(facts)
    assert "minilm-l6: fp32; rows packed end to end" in written
    assert "deberta: fp32; rows of similar length" in written
