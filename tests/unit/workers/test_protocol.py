"""Everything that crosses the pipe comes out as it went in, and nothing else is taken."""

import json
import math

import pytest

from automl_ft.config.study import BudgetConfig, DataConfig, ModelConfig, StudyConfig
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.workers import protocol
from automl_ft.workers.protocol import decode, encode
from tests.fakes.scripted_worker import make_facts

CONFIG = StudyConfig(
    name="demo \u00fc",
    model=ModelConfig(checkpoint="tiny"),
    data=DataConfig(path=("a.csv", "b.csv"), text=("one", "two"), test=None),
    space={"learning_rate": {"low": 1e-5, "choices": [1, "a", None]}},
    budget=BudgetConfig(timeout_seconds=60.0),
)
EVALUATION = Evaluation(step=50, epoch=0.5, metrics={"validation_f1_macro": 0.5}, seconds=1.5)
SPEC = TrialSpec(number=3, hyperparameters={"dropout": None, "epochs": 2}, seed=7, folder="/x")
RESULT = TrialResult(
    number=3,
    outcome=Outcome.FAILED,
    value=None,
    best_step=None,
    metrics={},
    evaluations=(EVALUATION,),
    cost=TrialCost(seconds=1.0, examples=5, peak_memory_mib=2.0),
    failure=TrialFailure(kind=FailureKind.OUT_OF_MEMORY, message="line\nline", traceback=""),
)
MESSAGES = (
    protocol.Prepare(config=CONFIG, checkpoints=("tiny", "other"), kept_in=None),
    protocol.Prepared(facts=make_facts()),
    protocol.CountWorkers(most=7),
    protocol.WorkersCounted(num_workers=3),
    protocol.Keep(folder="/x"),
    protocol.Open(config=CONFIG, facts=make_facts(), folder="/x", threads=2),
    protocol.Ready(),
    protocol.Run(specs=(SPEC, SPEC)),
    protocol.Decide(number=3, decision=Decision.PRUNE),
    protocol.Pause(),
    protocol.TrialProgress(
        number=3,
        progress=Progress(examples_seen=1, total_examples=2, train_loss=0.5, seconds=0.1),
    ),
    protocol.TrialEvaluation(number=3, evaluation=EVALUATION),
    protocol.TrialResulted(result=RESULT),
    protocol.WorkerNote(text="The cache is too small."),
    protocol.WorkerError(kind="DataError", message="two\nlines", traceback="\u2028"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_comes_out_as_it_went_in(message):
    line = encode(message)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1, "one message is one line"
    assert decode(line) == message


def test_every_kind_of_message_is_tried_here():
    assert {type(message) for message in MESSAGES} == set(protocol.Message.__args__)


def test_nan_and_infinity_cross_the_pipe():
    metrics = {"a": math.nan, "b": math.inf}
    sent = Evaluation(step=1, epoch=1.0, metrics=metrics, seconds=0.0)
    received = decode(encode(protocol.TrialEvaluation(number=0, evaluation=sent)))
    assert math.isnan(received.evaluation.metrics["a"])
    assert received.evaluation.metrics["b"] == math.inf


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        '{"type": "Ready", "bo',
        '{"type": "Nonsense", "body": {}}',
        '{"body": {}}',
        '{"type": "Keep", "body": {}}',
        '{"type": "Keep", "body": []}',
        "[1]",
        "null",
        '{"type": "Decide", "body": {"number": 1, "decision": "explode"}}',
    ],
)
def test_line_that_is_no_message_is_refused_and_shown(line):
    with pytest.raises(ValueError, match=r"is no message of a worker|is not a valid Decision"):
        decode(line)


def test_long_line_that_is_no_message_is_shown_in_part():
    with pytest.raises(ValueError, match="is no message") as error:
        decode("x" * 10_000)
    assert len(str(error.value)) < 400


def test_unknown_keys_of_a_newer_worker_are_passed_over():
    plain = json.loads(encode(protocol.Keep(folder="/x")))
    plain["body"]["news"] = 1
    assert decode(json.dumps(plain)) == protocol.Keep(folder="/x")
