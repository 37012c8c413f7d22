from __future__ import annotations

import dataclasses

import pytest
from huggingface_hub import ModelCard

from automl_ft.config.study import BudgetConfig, DataConfig
from automl_ft.export.card import card_text, write_card
from automl_ft.export.job import RankedRow


@pytest.fixture
def job(bert_study, make_job, tmp_path):
    return make_job(bert_study, tmp_path)


def with_search(job, **changes):
    return dataclasses.replace(job, search=dataclasses.replace(job.search, **changes))


def with_config(job, **changes):
    return dataclasses.replace(job, config=dataclasses.replace(job.config, **changes))


def with_checkpoint(job, **changes):
    checkpoint = dataclasses.replace(job.checkpoint, **changes)
    return dataclasses.replace(job, facts=dataclasses.replace(job.facts, checkpoints=(checkpoint,)))


def metadata(job):
    return ModelCard(card_text(job, job.value)).data


def test_the_model_index_holds_the_validation_metrics(job):
    results = {result.metric_name: result for result in metadata(job).eval_results}
    assert results["Validation f1_macro"].metric_value == job.value
    assert results["Validation f1_macro"].metric_type == "f1"
    assert results["Validation accuracy"].metric_type == "accuracy"
    assert results["Validation mcc"].metric_type == "matthews_correlation"
    assert {result.dataset_split for result in results.values()} == {"validation"}


def test_the_objective_comes_first(job):
    changed = with_config(job, objective="mcc")
    assert metadata(changed).eval_results[0].metric_name == "Validation mcc"


def test_the_hub_finds_what_it_looks_for(job):
    data = metadata(job)
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "transformers"
    assert "automl-ft" in data.tags


def test_a_local_base_model_is_not_called_a_hub_model(job):
    assert metadata(job).base_model is None
    text = card_text(job, job.value)
    assert "fine-tuned from `pretrained`" in text
    assert job.checkpoint.checkpoint not in text  # nobody's folders are published


def test_a_hub_model_is_the_base_model(job):
    hub = with_checkpoint(job, checkpoint="org/name", revision="abc123")
    assert metadata(hub).base_model == "org/name"
    assert "revision `abc123`" in card_text(hub, 0.5)


def test_the_bundled_model_is_known_on_the_hub(job):
    bundled = with_checkpoint(job, checkpoint="minilm-l6")
    assert metadata(bundled).base_model == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("path", "datasets"),
    [("org/data", ["org/data"]), ("imdb", ["imdb"]), ("docstrings", None), ("/x/rows.csv", None)],
)
def test_only_a_hub_data_set_is_linked(job, path, datasets):
    found = metadata(with_config(job, data=DataConfig(path=path)))
    assert found.datasets == datasets
    name = "rows.csv" if path.startswith("/") else path
    assert found.eval_results[0].dataset_name == name


def test_it_says_that_the_test_split_was_not_read(job):
    assert "The test split was not read by the search" in card_text(job, job.value)


def test_metrics_stand_overall_and_by_class(job):
    text = card_text(job, job.value)
    f1 = job.metrics["validation_f1/fruit"]
    assert f"| f1_macro | {job.value:.4f} |" in text
    [line] = [line for line in text.splitlines() if line.startswith("| fruit | ") and "." in line]
    assert line.endswith(f"| {f1:.4f} |")


def test_a_value_that_rounding_moved_is_owned_up_to(job):
    text = card_text(job, job.value - 0.01)
    assert f"gives {job.value - 0.01:.6f} in fp32" in text
    assert f"not the trial's own {job.value:.6f}" in text
    [objective, *_] = ModelCard(text).data.eval_results
    assert objective.metric_value == job.value - 0.01
    assert "rounding" not in card_text(job, job.value)


def test_the_search_is_told_with_states_budget_and_top_trials(job):
    top = (
        RankedRow(
            number=4, value=0.8, params={"dropout": 0.123456, "freezing": "none"}, seconds=61
        ),
        RankedRow(number=0, value=0.7, params={"freezing": "head_only"}, seconds=5),
    )
    budget = BudgetConfig(trials=1, timeout_seconds=1800)
    text = card_text(with_search(with_config(job, budget=budget), top=top), 0.5)
    assert "3 trials (1 complete, 2 pruned) in 1m 01s" in text
    assert "the budget was 1 trial and 30m 00s" in text
    assert "| 4 | 0.8000 | 1m 01s | 0.1235 | none |" in text
    assert "| **0** (this) | 0.7000 | 5.0s |  | head_only |" in text


def test_the_default_recipe_is_compared_and_the_verdict_told(job):
    other = dataclasses.replace(
        with_search(job, default_number=1, default_value=0.25, verdict="It wins."), number=3
    )
    text = card_text(other, 0.5)
    assert f"The default recipe (trial 1) has 0.2500, this trial {job.value:.4f}. It wins." in text
    assert "This is the default recipe itself." in card_text(job, 0.5)
    assert "did not run to its end" in card_text(
        with_search(job, default_number=None, default_value=None), 0.5
    )


def test_importances_are_a_table_or_a_plain_sentence(job):
    assert "Too few trials." in card_text(job, 0.5)
    assert "| hyperparameter | importance |" not in card_text(job, 0.5)
    told = with_search(job, importances={"dropout": 0.75, "epochs": 0.25}, importances_note="Hm.")
    assert "Hm.\n\n| hyperparameter | importance |" in card_text(told, 0.5)
    assert "| `dropout` | 0.750 |" in card_text(told, 0.5)


def test_the_data_are_told_with_notes_and_counts(job):
    text = card_text(job, 0.5)
    assert job.facts.data.fingerprint in text
    assert "5 were longer than 10 tokens" in text
    assert "| **all** | 36 | 12 | 12 |" in text
    assert "- Two rows | recur." in text


def test_many_classes_are_cut(job):
    labels = tuple(f"class {n}" for n in range(60))
    data = dataclasses.replace(job.facts.data, labels=labels, notes=())
    text = card_text(dataclasses.replace(job, facts=dataclasses.replace(job.facts, data=data)), 0.5)
    assert "10 more classes are not shown" in text
    assert "class 59" not in text
    assert "Met while reading" not in text


def test_a_class_name_cannot_break_a_table(job):
    data = dataclasses.replace(job.facts.data, labels=("a|b\nc", "fruit", "tool"))
    text = card_text(dataclasses.replace(job, facts=dataclasses.replace(job.facts, data=data)), 0.5)
    assert "| a\\|b c | " in text


def test_every_hyperparameter_is_told(job):
    text = card_text(job, 0.5)
    assert "| `learning_rate` | 0.001 | peak learning rate of AdamW |" in text
    assert "| `dropout` | the checkpoint's own |" in text
    assert "| `model` |" not in text
    values = {**job.hyperparameters, "model": job.checkpoint.checkpoint}
    assert "| `model` |" in card_text(dataclasses.replace(job, hyperparameters=values), 0.5)


def test_a_pair_of_texts_is_shown_how_to_be_used(job):
    pair = with_config(job, data=DataConfig(path="x.csv", text=("a", "b")))
    text = card_text(pair, 0.5)
    assert "A classifier of pairs of texts" in text
    assert '"text_pair": "another"' in text


def test_the_card_is_written_as_utf_8(job, tmp_path):
    named = dataclasses.replace(job, study="na\u00efve")
    write_card(named, 0.5, tmp_path / "README.md")
    assert "na\u00efve" in (tmp_path / "README.md").read_bytes().decode("utf-8")
