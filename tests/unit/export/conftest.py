"""Studies as a search leaves them, made by hand around tiny models: rows, checkpoint, records."""

from __future__ import annotations

import csv
import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from automl_ft.config.study import BudgetConfig, DataConfig, ModelConfig, StudyConfig
from automl_ft.data.encoding import encode
from automl_ft.data.prepare import load_splits
from automl_ft.data.saved import save_splits
from automl_ft.export.job import ExportJob, RankedRow, SearchSummary
from automl_ft.models.freezing import plan_freezing
from automl_ft.models.load import load_model, load_tokenizer, resolve, weights_hash
from automl_ft.specs.facts import CheckpointFacts, DataNote, StudyFacts
from automl_ft.specs.hyperparameters import complete
from automl_ft.storage.records import StudyRecord, TrialRecord
from automl_ft.tasks.registry import get_task
from automl_ft.trial.batches import Padding
from automl_ft.trial.checkpoint import save_best
from automl_ft.trial.evaluation import predict_logits

WORDS = {
    "animal": ["cat", "dog", "horse", "fox", "wolf", "bear", "owl", "hen"],
    "fruit": ["apple", "pear", "plum", "fig", "lime", "grape", "melon", "kiwi"],
    "tool": ["saw", "axe", "drill", "file", "clamp", "plane", "wrench", "chisel"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3,
        "intermediate_size": 24, "max_position_embeddings": 24,
    },
    "gpt2": {
        "n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 24, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": None,
    },
}  # fmt: skip
MAX_LENGTH = 10


def build_checkpoint(folder: Path, architecture: str) -> Path:
    """Write a tiny pretrained checkpoint with a word tokenizer."""
    special = ["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]"]
    words = [*special, "the", "a", "and", "of", *(w for kind in WORDS.values() for w in kind)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if architecture == "bert":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 3))
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                  "mask_token": "[MASK]"}  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=len(words), **CONFIGS[architecture])
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def write_csv(path: Path, *, num_rows: int, is_pair: bool = False) -> Path:
    """Write rows of words, each class with words of its own; ids keep the texts apart."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", *(["context"] if is_pair else []), "topic"])
        for row in range(num_rows):
            topic = ("animal", "fruit", "tool")[row % 3]
            words = chance.choices(WORDS[topic] + ["the", "a", "and", "of"], k=4 + row % 9)
            text = " ".join([*words, f"x{row}"])
            writer.writerow([row, text, *(["the " + words[0]] if is_pair else []), topic])
    return path


@dataclass(frozen=True)
class FakeStore:
    """What `export_trial` reads of a `StudyStore`."""

    record: StudyRecord
    records: tuple[TrialRecord, ...]

    def trials(self) -> list[TrialRecord]:
        return list(self.records)

    def active_seconds(self) -> float:
        return 61.0


@dataclass(frozen=True)
class MadeStudy:
    """A study with one complete trial, number 0, whose checkpoint is kept."""

    store: FakeStore
    folder: Path
    source: Path

    @property
    def trial(self) -> TrialRecord:
        return self.store.records[0]

    @property
    def record(self) -> StudyRecord:
        return self.store.record


def make_trial(number: int, **changes: Any) -> TrialRecord:
    """Build a complete trial of which nothing is on disk."""
    values: dict[str, Any] = {
        "number": number,
        "state": TrialState.COMPLETE,
        "params": {"learning_rate": 1e-4},
        "distributions": {"learning_rate": FloatDistribution(1e-6, 1e-2, log=True)},
        "hyperparameters": complete({"learning_rate": 1e-4}),
        "value": 0.5,
        "intermediate_values": {},
        "metrics": {},
        "seconds": 2.0,
        "examples": 40,
        "peak_memory_mib": 10.0,
        "failure": None,
        "seed": 7,
        "origin": "default",
        "rerun_of": None,
        "best_step": 40,
        "started": None,
        "ended": None,
        "user_attrs": {},
        "system_attrs": {},
    }
    return TrialRecord(**(values | changes))


def make_job(study: MadeStudy, target: Path, **changes: Any) -> ExportJob:
    """Build the job of exporting the study's trial."""
    trial, record = study.trial, study.record
    values: dict[str, Any] = {
        "study": record.name,
        "config": record.config,
        "facts": record.facts,
        "folder": str(study.folder),
        "target": str(target),
        "version": "0.1.0",
        "number": trial.number,
        "hyperparameters": trial.hyperparameters,
        "seed": trial.seed,
        "value": trial.value,
        "metrics": trial.metrics,
        "seconds": trial.seconds,
        "examples": trial.examples,
        "search": SearchSummary(
            top=(RankedRow(number=0, value=trial.value, params=trial.params, seconds=2.0),),
            counts={"complete": 1, "pruned": 2},
            seconds=61.0,
            default_number=0,
            default_value=trial.value,
            verdict=None,
            importances={},
            importances_note="Too few trials.",
        ),
    }
    return ExportJob(**(values | changes))


def make_study(
    folder: Path,
    architecture: str = "bert",
    *,
    is_pair: bool = False,
    objective: str = "f1_macro",
    hyperparameters: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    num_rows: int = 60,
) -> MadeStudy:
    """Make a study: its rows are split and saved, and one trial has a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = build_checkpoint(folder / "pretrained", architecture)
    source = write_csv(folder / "reviews.csv", num_rows=num_rows, is_pair=is_pair)
    text = ("review", "context") if is_pair else ("review",)
    config = StudyConfig(
        name="reviews",
        model=ModelConfig(checkpoint=str(checkpoint)),
        data=DataConfig(path=str(source), text=text, label="topic", **(data or {})),
        objective=objective,
        positive_label="fruit" if objective == "f1_binary" else None,
        budget=BudgetConfig(trials=3),
    )
    splits = load_splits(config.data, config.seed)
    save_splits(splits, folder / "study" / "data" / "splits")
    resolved = resolve(config.model)
    facts = StudyFacts(
        data=dataclasses.replace(
            splits.facts(), notes=(DataNote(kind="demo", message="Two rows | recur.", count=2),)
        ),
        checkpoints=(
            CheckpointFacts(
                checkpoint=str(checkpoint), revision="", weights_hash=weights_hash(resolved),
                architecture=architecture, num_layers=3, num_parameters=1, max_length=MAX_LENGTH,
                num_truncated=5, num_tokens=300,
            ),
        ),
        device="cpu (x86_64)",
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )  # fmt: skip
    record = StudyRecord(
        name="reviews", config=config, facts=facts, space={}, objective=objective,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    hyper = complete(
        {"learning_rate": 1e-3, "batch_size": 8, "epochs": 1, **(hyperparameters or {})}
    )
    trial = _train(record, splits, hyper, folder / "study")
    return MadeStudy(FakeStore(record, (trial,)), folder / "study", source)


def _train(record: StudyRecord, splits: Any, hyper: dict[str, Any], folder: Path) -> TrialRecord:
    """Train a little, and evaluate and save on the search's own path."""
    config, model_config = record.config, record.config.model
    resolved = resolve(model_config)
    labels = splits.labels
    loaded = load_model(resolved, model_config, labels=labels, dropout=hyper["dropout"], seed=7)
    tokenizer = load_tokenizer(resolved, model_config)
    trainable = plan_freezing(loaded.layer_map, hyper).ever_trainable()
    parameters = dict(loaded.model.named_parameters())
    optimizer = torch.optim.Adam([parameters[name] for name in trainable], lr=5e-3)
    columns = [list(column) for column in zip(*splits.train.texts, strict=True)]
    inputs = tokenizer(
        *columns, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    targets = torch.as_tensor(splits.train.labels)
    for _ in range(12):
        optimizer.zero_grad()
        loaded.model(**inputs, labels=targets).loss.backward()
        optimizer.step()
    trained = {name: parameters[name].detach() for name in trainable}
    logits = predict_logits(
        loaded.model,
        encode(splits.validation, tokenizer, MAX_LENGTH),
        Padding(token_id=tokenizer.pad_token_id, side=tokenizer.padding_side),
        5,
        torch.device("cpu"),
    )
    task = get_task(config.task)
    scores = task.metrics(splits.validation.labels, logits, labels, config.positive_label)
    metrics = {f"validation_{name}": value for name, value in scores.items()}
    save_best(folder / "trials" / "0", trained, logits)
    value = scores[config.objective]
    return make_trial(0, hyperparameters=hyper, value=value, metrics=metrics)


@pytest.fixture(scope="session")
def bert_study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """A study of a tiny BERT; nobody changes it."""
    return make_study(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def gpt2_study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """A study of a tiny GPT-2, whose tokenizer has no pad token; nobody changes it."""
    return make_study(
        tmp_path_factory.mktemp("gpt2"), "gpt2", hyperparameters={"freezing": "embeddings"}
    )


@pytest.fixture
def new_study(tmp_path: Path) -> Callable[..., MadeStudy]:
    """Make a study of one's own."""
    return lambda *args, **options: make_study(tmp_path / "made", *args, **options)


@pytest.fixture(name="make_trial", scope="session")
def _make_trial() -> Callable[..., TrialRecord]:
    """Build complete trials of which nothing is on disk."""
    return make_trial


@pytest.fixture(name="make_job", scope="session")
def _make_job() -> Callable[..., ExportJob]:
    """Build the job of exporting a study's trial."""
    return make_job
