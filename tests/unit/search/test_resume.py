"""What may change between two runs of a study, and what may not."""

import dataclasses
from datetime import UTC, datetime

import pytest

from automl_ft.config.load import settings_of
from automl_ft.config.study import DataConfig, ModelConfig
from automl_ft.errors import ConfigError, StudyExistsError
from automl_ft.search.resume import check_resumable, differences
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.storage.records import StudyRecord
from tests.fakes.lab import SPACE
from tests.fakes.scripted_worker import make_facts

FREE = {
    "model.revision",
    "training.micro_batch_size", "training.memory_gib",
    "name", "space", "sampler", "pruner", "device", "workers", "storage", "output",
    "model.trust_remote_code",
    "data.path", "data.config", "data.revision", "data.format", "data.encoding", "data.train",
    "budget.trials", "budget.timeout_seconds", "budget.patience", "budget.min_improvement",
    "training.eval_batch_size", "training.keep_checkpoints", "training.threads",
    "training.activation_cache_gib", "training.cuda_graphs",
}  # fmt: skip
"""Settings that may change: a changed source of data shows in its fingerprint."""
OTHER = {
    "task": "another-task",
    "objective": "mcc",
    "positive_label": "good",
    "seed": 5,
    "model.checkpoint": "large",
    "data.text": ("one", "two"),
    "data.label": "stars",
    "data.group": "author",
    "data.validation": 0.3,
    "data.test": None,
    "data.max_length": 32,
    "data.class_weights": "balanced",
    "training.batching": "bucketed",
    "training.precision": "bf16",
    "training.validations_per_epoch": 7,
    "training.early_stopping_patience": 2,
    "training.seed": 3,
}


def space_of(**changes):
    return resolve(load_space({**SPACE, **changes}), {"num_layers": 4})


@pytest.fixture
def record(bare_lab):
    return StudyRecord(
        name="demo",
        config=bare_lab.config(),
        facts=make_facts(),
        space=space_of().to_plain(),
        objective="f1_macro",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


def changed(config, dotted, value):
    """Change one setting without the checks of its section."""
    *sections, name = dotted.split(".")
    if sections:
        inner = changed(getattr(config, sections[0]), name, value)
        return changed(config, sections[0], inner)
    copy = dataclasses.replace(config)
    object.__setattr__(copy, name, value)
    return copy


def leaves(plain, prefix=""):
    for key, value in plain.items():
        if isinstance(value, dict) and key != "space":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_setting_is_either_free_or_not(record):
    settings = set(leaves(settings_of(record.config)))
    assert settings == FREE | set(OTHER)
    assert not FREE & set(OTHER)


def test_equal_study_differs_in_nothing(record):
    assert differences(record, record.config, record.facts) == []


@pytest.mark.parametrize("setting", OTHER)
def test_changed_setting_that_defines_a_value_is_listed(record, setting):
    config = changed(record.config, setting, OTHER[setting])
    (line,) = differences(record, config, record.facts)
    assert line.startswith(f"{setting}: stored `")


@pytest.mark.parametrize("setting", sorted(FREE - {"space"}))
def test_free_setting_may_change(record, setting):
    config = changed(record.config, setting, "changed")
    assert differences(record, config, record.facts) == []


def test_values_are_shown_as_a_user_writes_them(record):
    config = changed(record.config, "data.text", ("one", "two"))
    assert differences(record, config, record.facts) == ["data.text: stored `text`, now `one, two`"]


def test_long_lists_are_cut(record):
    facts = make_facts(labels=tuple("abcdefghij"))
    (line,) = differences(record, record.config, facts)
    assert line == "labels: stored `bad, good`, now `a, b, c, d, e, f, g, h, ... (10 in all)`"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_changed_rows_of_any_split_are_listed(record, split):
    prints = {**record.facts.data.split_fingerprints, split: "0" * 64}
    facts = make_facts(split_fingerprints=prints)
    (line,) = differences(record, record.config, facts)
    assert line.startswith(f"data, {split} split: stored ")
    assert line.endswith("rows with 000000000000")


def test_split_that_is_gone_is_listed(record):
    prints = {"train": record.facts.data.split_fingerprints["train"]}
    lines = differences(record, record.config, make_facts(split_fingerprints=prints))
    assert [line.split()[1] for line in lines] == ["validation", "test"]
    assert lines[0].endswith("with none")


@pytest.mark.parametrize("change", [{"weights_hash": "0" * 64}, {"max_length": 8}])
def test_changed_checkpoint_is_listed(record, change):
    (line,) = differences(record, record.config, make_facts(**change))
    assert "of tiny" in line


def test_checkpoint_that_the_space_no_longer_searches_is_no_difference(record):
    assert differences(record, record.config, make_facts(checkpoint="other")) == []


def test_refusal_lists_everything_and_says_what_to_do(record):
    config = dataclasses.replace(
        record.config,
        seed=5,
        model=ModelConfig(checkpoint="large"),
        data=DataConfig(path="rows.csv", label="stars"),
    )
    with pytest.raises(StudyExistsError) as error:
        check_resumable(record, config, record.facts, space_of())
    lines = str(error.value).splitlines()
    assert lines[0] == "Study `demo` exists and differs from what is asked for:"
    assert len(lines) == 5
    assert "another --name" in lines[-1]


def test_space_may_grow_but_not_change_its_kind(record):
    wide = space_of(learning_rate={**SPACE["learning_rate"], "high": 0.9})
    check_resumable(record, record.config, record.facts, wide)
    with pytest.raises(ConfigError, match="dropout"):
        check_resumable(
            record,
            record.config,
            record.facts,
            space_of(dropout={"choices": [0.1, 0.2], "default": 0.1}),
        )


@pytest.mark.parametrize(
    ("stored", "came_to", "now", "line"),
    [
        ("auto", "fp32", "auto", None),
        ("auto", "bf16", "bf16", None),
        ("bf16", "bf16", "auto", None),
        ("auto", "fp32", "bf16", "training.precision: stored `fp32`, now `bf16`"),
        ("fp32", "fp32", "bf16", "training.precision: stored `fp32`, now `bf16`"),
    ],
)
def test_another_precision_is_listed_and_auto_goes_on(record, stored, came_to, now, line):
    before = dataclasses.replace(
        record,
        config=changed(record.config, "training.precision", stored),
        facts=dataclasses.replace(record.facts, precision=came_to),
    )
    elsewhere = dataclasses.replace(record.facts, precision="bf16", device="cuda (a card)")
    found = differences(before, changed(record.config, "training.precision", now), elsewhere)
    assert found == ([] if line is None else [line])


def with_validations(record, setting, per_epoch=2.0):
    """Return a stored study of a setting that came to a number."""
    return dataclasses.replace(
        record,
        config=changed(record.config, "training.validations_per_epoch", setting),
        facts=dataclasses.replace(record.facts, validations_per_epoch=per_epoch),
    )


@pytest.mark.parametrize(
    ("stored", "now"), [((2, 2.0), "auto"), ((5, 2.0), "auto"), (("auto", 1.0), 1)]
)
def test_validations_that_come_to_the_same_number_are_no_difference(record, stored, now):
    config = changed(record.config, "training.validations_per_epoch", now)
    assert differences(with_validations(record, *stored), config, record.facts) == []


@pytest.mark.parametrize(
    ("stored", "said"), [(("auto", 1.0), "stored `1`, now `2`"), (("auto", 0.5), "stored `auto`")]
)
def test_other_validations_are_listed_with_the_setting_to_go_on_with(record, stored, said):
    config = changed(record.config, "training.validations_per_epoch", 2)
    (line,) = differences(with_validations(record, *stored), config, record.facts)
    assert said in line


@pytest.mark.parametrize(("stored", "is_refused"), [("", False), ("cd" * 32, True)])
def test_a_changed_config_or_tokenizer_is_listed(record, stored, is_refused):
    def with_hash(facts, value):
        (checkpoint,) = facts.checkpoints
        checkpoints = (dataclasses.replace(checkpoint, files_hash=value),)
        return dataclasses.replace(facts, checkpoints=checkpoints)

    before = dataclasses.replace(record, facts=with_hash(record.facts, stored))
    found = differences(before, record.config, with_hash(record.facts, "ef" * 32))
    assert len(found) == is_refused
    assert not found or found[0].startswith("config, tokenizer or code of ")


@pytest.mark.parametrize(
    ("stored", "came_to", "now", "is_same"),
    [
        ("auto", "packed", "packed", True),
        ("auto", "packed", "bucketed", False),
        ("bucketed", "bucketed", "auto", True),
        ("packed", "bucketed", "packed", True),
        ("packed", "bucketed", "bucketed", True),
    ],
)
def test_batches_are_compared_as_they_came_to_be(record, stored, came_to, now, is_same):
    models = tuple(
        dataclasses.replace(model, batching=came_to) for model in record.facts.checkpoints
    )
    before = dataclasses.replace(
        record,
        config=changed(record.config, "training.batching", stored),
        facts=dataclasses.replace(record.facts, checkpoints=models),
    )
    found = differences(before, changed(record.config, "training.batching", now), before.facts)
    line = f"training.batching: stored `{stored}`, which came to `{came_to}`, now `{now}`"
    assert found == ([] if is_same else [line])
