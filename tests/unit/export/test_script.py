from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from automl_ft.export.model import rebuild_model
from automl_ft.export.recipe import script_facts
from automl_ft.export.script import script_text, write_script
from automl_ft.export.script_blocks import GRADUAL_TRAINER
from automl_ft.specs.hyperparameters import complete

FULL = {
    "freezing": "bottom_layers", "frozen_layers": 1, "learning_rate": 2e-3, "batch_size": 8,
    "epochs": 2, "dropout": 0.2, "weight_decay": 0.01, "l1": 1e-4, "label_smoothing": 0.1,
    "warmup_ratio": 0.1, "lr_schedule": "cosine", "layerwise_lr_decay": 0.8, "max_grad_norm": 0.5,
    "reinit_layers": 1, "token_dropout": 0.1, "word_swap": 0.1, "word_deletion": 0.1, "mixup": 0.3,
}  # fmt: skip
RECIPES = {
    "plain": {},
    "full": FULL,
    "embeddings": {"freezing": "embeddings"},
    "head_only": {"freezing": "head_only", "weight_decay": 0.1},
    "gradual": {"freezing": "gradual_unfreezing", "unfreezing_pace": 0.5},
    "gradual_reinit": {"freezing": "gradual_unfreezing", "reinit_layers": 2},
    "token_dropout": {"token_dropout": 0.2},
    "words": {"word_swap": 0.2, "batch_size": 50},
    "layerwise": {"layerwise_lr_decay": 0.9},
    "l1": {"l1": 0.01},
    "mixup": {"mixup": 0.2, "label_smoothing": 0.05},
}


LONG = ("CHECK", "TRAIN", "VALID")


def make_script(study, make_job, tmp_path, *, training=None, data=None, objective=None, **recipe):
    values = complete({"learning_rate": 1e-3, "batch_size": 8, "epochs": 1, **recipe})
    config = study.record.config
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, **(training or {})),
        data=dataclasses.replace(config.data, **(data or {})),
        objective=objective or config.objective,
        positive_label="tool",
    )
    job = make_job(study, tmp_path, hyperparameters=values, config=config)
    path = tmp_path / "train.py"
    write_script(job, rebuild_model(job), path)
    return path


@pytest.fixture
def script(bert_study, make_job, tmp_path):
    return lambda **options: make_script(bert_study, make_job, tmp_path, **options).read_text()


def constants(text):
    """Evaluate the constants at the top of a script."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_script_is_clean_and_formatted(request, make_job, tmp_path, architecture, name):
    study = request.getfixturevalue(f"{architecture}_study")
    path = make_script(
        study, make_job, tmp_path, data={"class_weights": "balanced"}, **RECIPES[name]
    )
    ruff = shutil.which("ruff", path=os.path.dirname(sys.executable)) or shutil.which("ruff")
    assert ruff, "ruff comes with the extra `dev`"
    for arguments in (
        ["check", "--select", "E,F,W,I,B,UP,SIM,N", "--ignore", "E501"],
        ["format", "--diff"],
    ):
        done = subprocess.run(
            [ruff, *arguments, "--isolated", "--no-cache", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    text = path.read_text()
    assert "automl_ft" not in text
    # A path in a constant may be as long as it likes; nothing else may.
    assert [line for line in text.splitlines() if len(line) > 88 and line[:5] not in LONG] == []


def test_a_plain_recipe_makes_a_short_plain_script(script):
    text = script()
    assert len(text.splitlines()) < 150
    for word in (
        "\nclass ",
        "freeze",
        "optimizer",
        "import random",
        "callbacks",
        "WEIGHTS",
        "accumulation",
    ):
        assert word not in text


def test_the_recipe_is_in_the_arguments(script):
    text = script(
        learning_rate=3e-5, batch_size=16, epochs=4, warmup_ratio=0.06, weight_decay=0.01,
        max_grad_norm=0.7, lr_schedule="cosine",
    )  # fmt: skip
    for argument in (
        "learning_rate=3e-05", "per_device_train_batch_size=16", "num_train_epochs=4",
        "per_device_eval_batch_size=64",
        "warmup_steps=0.06", "weight_decay=0.01", "max_grad_norm=0.7",
        'lr_scheduler_type="cosine"', 'metric_for_best_model="f1_macro"', "seed=SEED",
    ):  # fmt: skip
        assert f" {argument},\n" in text


@pytest.mark.parametrize(
    ("batch_size", "limit", "expected"),
    [(48, 32, (24, 2)), (8, 32, (8, 1)), (7, 3, (1, 7)), (64, "auto", (32, 2))],
)
def test_the_effective_batch_size_is_exact(script, batch_size, limit, expected):
    text = script(batch_size=batch_size, training={"micro_batch_size": limit})
    size = int(re.search(r"per_device_train_batch_size=(\d+)", text)[1])
    steps = re.search(r"gradient_accumulation_steps=(\d+)", text)
    assert (size, int(steps[1]) if steps else 1) == expected
    assert size * expected[1] == batch_size


@pytest.mark.parametrize(
    ("recipe", "frozen"),
    [
        ({"freezing": "embeddings"}, ("bert.embeddings.",)),
        (
            {"freezing": "bottom_layers", "frozen_layers": 1},
            ("bert.embeddings.", "bert.encoder.layer.0."),
        ),
        ({"freezing": "head_only"}, ("bert.",)),
    ],
)
def test_what_is_frozen_is_spelled_out(script, recipe, frozen):
    assert constants(script(**recipe))["FROZEN"] == frozen


def test_dropouts_between_frozen_modules_are_named_too(gpt2_study, make_job, tmp_path):
    path = make_script(gpt2_study, make_job, tmp_path, freezing="embeddings")
    found = constants(path.read_text())["FROZEN"]
    assert found == ("transformer.wte.", "transformer.wpe.", "transformer.drop.")


def test_gradual_unfreezing_lists_the_parts_from_the_bottom(script):
    found = constants(script(freezing="gradual_unfreezing", unfreezing_pace=0.4))
    layers = [(f"bert.encoder.layer.{layer}.",) for layer in range(3)]
    assert found["FROZEN_PARTS"] == [("bert.embeddings.",), *layers]
    assert (found["NUM_PARTS"], found["UNFREEZING_PACE"]) == (4, 0.4)


def test_fresh_top_blocks_are_never_frozen(script):
    found = constants(script(freezing="gradual_unfreezing", reinit_layers=2))
    assert found["FROZEN_PARTS"] == [("bert.embeddings.",), ("bert.encoder.layer.0.",)]
    assert found["REINITIALISED"] == [
        "bert.encoder.layer.1",
        "bert.encoder.layer.2",
        "bert.pooler.dense",
    ]


def test_gradual_unfreezing_leaves_alone_what_the_architecture_never_trains():
    """Such as RoFormer's fixed position embeddings."""
    model = torch.nn.ModuleDict({"low": torch.nn.Linear(2, 2), "high": torch.nn.Linear(2, 2)})
    model["high"].bias.requires_grad_(False)

    class FakeTrainer:
        def __init__(self, model):
            self.model = model

    constants = {"FROZEN_PARTS": [("low.",)], "NUM_PARTS": 1, "UNFREEZING_PACE": 0.5}
    names = {"Trainer": FakeTrainer, **constants}
    exec(GRADUAL_TRAINER, names)
    trainer = names["GraduallyUnfrozenTrainer"](model)
    learned = []
    for progress in (0.0, 1.0):
        trainer.unfreeze(progress)
        learned.append([name for name, p in model.named_parameters() if p.requires_grad])
    assert learned == [["high.weight"], ["low.weight", "low.bias", "high.weight"]]


def test_depths_count_from_the_head(script):
    depths = constants(script(layerwise_lr_decay=0.9))["DEPTHS"]
    assert depths == {
        "bert.embeddings.": 4,
        "bert.encoder.layer.0.": 3,
        "bert.encoder.layer.1.": 2,
        "bert.encoder.layer.2.": 1,
        "bert.pooler.": 0,
        "classifier.": 0,
    }


def test_dropout_is_given_under_the_models_own_keys(script):
    found = constants(script(dropout=0.25))["MODEL_OPTIONS"]
    assert found["hidden_dropout_prob"] == found["attention_probs_dropout_prob"] == 0.25


def test_a_decoder_gets_the_pad_token_of_the_trial(gpt2_study, make_job, tmp_path):
    text = make_script(gpt2_study, make_job, tmp_path).read_text()
    assert 'tokenizer.pad_token = "[SEP]"' in text
    assert constants(text)["MODEL_OPTIONS"] == {"pad_token_id": 2}


def test_class_weights_are_those_of_the_training_rows(script):
    assert constants(script(data={"class_weights": "balanced"}))["CLASS_WEIGHTS"] == [1.0] * 3
    assert "CLASS_WEIGHTS" not in script()


@pytest.mark.parametrize(
    ("objective", "call"),
    [
        ("mcc", '"mcc": matthews_corrcoef(true, predicted)'),
        ("f1_weighted", '"f1_weighted": f1_score(true, predicted, average="weighted", **options)'),
        ("f1_binary", '"f1_binary": f1_score(true == 2, predicted == 2, zero_division=0)'),
        ("accuracy", '"accuracy": accuracy_score(true, predicted)'),
    ],
)
def test_the_objective_is_measured_and_chooses_the_checkpoint(script, objective, call):
    text = script(objective=objective)
    assert call in text
    assert f'metric_for_best_model="{objective}"' in text


def test_early_stopping_counts_in_epochs(script):
    text = script(training={"early_stopping_patience": 3, "validations_per_epoch": 2})
    assert "EarlyStoppingCallback(early_stopping_patience=2)" in text


def test_fewer_validations_than_epochs_make_early_stopping_wait_longer(
    bert_study, make_job, tmp_path
):
    job = make_job(bert_study, tmp_path)
    training = dataclasses.replace(job.config.training, early_stopping_patience=3)
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, training=training),
        facts=dataclasses.replace(job.facts, validations_per_epoch=0.5),
    )
    text = script_text(script_facts(job, rebuild_model(job)))
    assert "EarlyStoppingCallback(early_stopping_patience=6)" in text
    assert "validated once an epoch, not every 2 epochs" in text


@pytest.mark.parametrize(
    ("precision", "came_to", "expected"),
    [
        ("auto", "fp32", None),
        ("auto", "bf16", "bf16=True"),
        ("bf16", "bf16", "bf16=True"),
        ("fp32", "fp32", None),
        ("tf32", "tf32", "tf32=True"),
    ],
)
def test_precision_is_that_of_the_trial(
    bert_study, make_job, tmp_path, precision, came_to, expected
):
    job = make_job(bert_study, tmp_path)
    training = dataclasses.replace(job.config.training, precision=precision)
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, training=training),
        facts=dataclasses.replace(job.facts, precision=came_to),
    )
    text = script_text(script_facts(job, rebuild_model(job)))
    assert ("bf16=" in text or "tf32=" in text) == (expected is not None)
    assert expected is None or f" {expected},\n" in text


def test_a_bundled_model_is_found_in_its_package(bert_study, make_job, tmp_path):
    job = make_job(bert_study, tmp_path)
    facts = script_facts(job, rebuild_model(job))
    bundled = dataclasses.replace(facts, package=("some_package", "model"), checkpoint="")
    text = script_text(bundled)
    assert 'CHECKPOINT = str(files("some_package") / "model")' in text
    assert "from importlib.resources import files" in text
    assert "scikit-learn some-package\n" in text


def test_a_hub_model_is_pinned_and_its_code_only_run_on_request(bert_study, make_job, tmp_path):
    job = make_job(bert_study, tmp_path)
    facts = script_facts(job, rebuild_model(job))
    model = dataclasses.replace(job.config.model, trust_remote_code=True)
    checkpoint = dataclasses.replace(job.checkpoint, revision="abc")
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, model=model),
        facts=dataclasses.replace(job.facts, checkpoints=(checkpoint,)),
    )
    text = script_text(dataclasses.replace(facts, job=job, checkpoint="org/name"))
    assert 'CHECKPOINT = "org/name"\nREVISION = "abc"\n' in text
    assert text.count("revision=REVISION") == 2
    assert text.count("trust_remote_code=True") == 2
    assert "trust_remote_code" not in script_text(facts)


def test_the_docstring_says_what_differs(script):
    text = ast.get_docstring(ast.parse(script(word_swap=0.1, data={"class_weights": "balanced"})))
    for point in (
        "rows come in another order",
        "not twice an epoch",
        "white space",
        "weighted loss",
    ):
        assert point in text
    assert "white space" not in ast.get_docstring(ast.parse(script()))


def test_a_long_study_name_keeps_the_docstring_short(bert_study, make_job, tmp_path):
    job = dataclasses.replace(make_job(bert_study, tmp_path), study="x" * 100)
    text = script_text(script_facts(job, rebuild_model(job)))
    assert max(map(len, ast.get_docstring(ast.parse(text)).splitlines())) <= 88


needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="Trainer needs the package accelerate"
)
RUN = """
import runpy, sys
sys.modules["automl_ft"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(path, *arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(path.parent / "hf"),
                   "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", RUN, str(path), *map(str, arguments)],
        cwd=path.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@needs_accelerate
@pytest.mark.parametrize(("architecture", "name"), [("bert", "full"), ("gpt2", "gradual")])
def test_a_script_trains_without_automl_ft(request, make_job, tmp_path, architecture, name):
    study = request.getfixturevalue(f"{architecture}_study")
    path = make_script(study, make_job, tmp_path, **RECIPES[name])
    done = run_script(path, "--output", tmp_path / "trained")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^eval_f1_macro: 0\.\d+", done.stdout, re.MULTILINE)
    assert (tmp_path / "trained" / "model.safetensors").is_file()
    assert (tmp_path / "trained" / "tokenizer_config.json").is_file()


@needs_accelerate
def test_a_script_reads_a_file_like_the_studys_source(bert_study, make_job, tmp_path):
    path = make_script(bert_study, make_job, tmp_path)
    source = bert_study.source
    done = run_script(path, "--train", source, "--validation", source, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "eval_accuracy" in done.stdout
