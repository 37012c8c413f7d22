"""What the tests of the training job share: a tiny model, a small data set, a scripted reporter."""

from __future__ import annotations

import csv
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig, TrainingConfig
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import TrialResult, TrialSpec
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.runner import run_trial

LABELS = ("bad", "good", "odd")
NUM_TRAIN, NUM_VALIDATION = 41, 18
RECIPE: Mapping[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 2, "dropout": 0.1}


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    # On matrices this small a second thread only waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Every trial ends with a garbage collection, which would look at all imported libraries again.
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def rows(number: int, seed: int) -> list[tuple[str, str]]:
    """Return texts of 4 to 15 words, a few of them telling the class."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(number):
        label = index % len(LABELS)
        telling = 20 * label + generator.integers(0, 20, size=2)
        others = generator.integers(0, 60, size=generator.integers(2, 14))
        words = [f"w{word}" for word in generator.permutation([*telling, *others])]
        found.append((" ".join(words), LABELS[label]))
    return found


def write_rows(path: Path, pairs: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *pairs])
    return path


@pytest.fixture(scope="session")
def save_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny pretrained model of an architecture, with its tokenizer."""

    def save(architecture: str = "bert", *, seed: int = 0, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        small = {
            "vocab_size": 65, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 0,
            "initializer_range": 0.2,
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wanted = {name: v for name, v in {**small, **changes}.items() if v is not None}
            config = AutoConfig.for_model(architecture, **wanted)
            AutoModel.from_config(config).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def checkpoint(save_checkpoint: Callable[..., Path]) -> Path:
    return save_checkpoint()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    return DataConfig(
        train=str(write_rows(folder / "train.csv", rows(NUM_TRAIN, 1))),
        validation=str(write_rows(folder / "validation.csv", rows(NUM_VALIDATION, 2))),
        test=None,
    )


@pytest.fixture(scope="session")
def config(checkpoint: Path, data: DataConfig) -> StudyConfig:
    return StudyConfig(
        name="tiny",
        model=ModelConfig(checkpoint=str(checkpoint)),
        data=data,
        device="cpu",
        training=TrainingConfig(
            micro_batch_size=8, eval_batch_size=8, validations_per_epoch=2, precision="fp32"
        ),
    )


@pytest.fixture(scope="session")
def study(config: StudyConfig) -> PreparedStudy:
    return prepare_study(config, (config.model.checkpoint,), None)


@pytest.fixture(scope="session")
def study_with(study: PreparedStudy) -> Callable[..., PreparedStudy]:
    """Return the study with other values of `training`, or of the config itself."""
    names = {field.name for field in dataclasses.fields(TrainingConfig)}

    def replace(**changes: Any) -> PreparedStudy:
        own = {name: value for name, value in changes.items() if name not in names}
        inner = {name: value for name, value in changes.items() if name in names}
        training = dataclasses.replace(study.config.training, **inner)
        config = dataclasses.replace(study.config, training=training, **own)
        return dataclasses.replace(study, config=config)

    return replace


@pytest.fixture
def large_study(study_with: Callable[..., PreparedStudy], tmp_path: Path) -> PreparedStudy:
    """Return a study in bf16 with 120 validation rows."""
    config = study_with(precision="bf16").config
    path = write_rows(tmp_path / "validation.csv", rows(120, 3))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, validation=str(path))
    )
    return prepare_study(config, (config.model.checkpoint,), None)


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class Script:
    """A reporter that answers as it was told, and remembers what it heard."""

    def __init__(
        self,
        *,
        reports: Mapping[int, Decision | BaseException] | None = None,
        steps: Mapping[int, Decision | BaseException] | None = None,
    ) -> None:
        self._reports = reports or {}
        self._steps = steps or {}
        self.evaluations: list[Evaluation] = []
        self.progresses: list[Progress] = []

    def progress(self, progress: Progress) -> Decision:
        self.progresses.append(progress)
        return self._answer(self._steps, len(self.progresses))

    def report(self, evaluation: Evaluation) -> Decision:
        self.evaluations.append(evaluation)
        return self._answer(self._reports, len(self.evaluations))

    @staticmethod
    def _answer(answers: Mapping[int, Decision | BaseException], number: int) -> Decision:
        answer = answers.get(number, Decision.CONTINUE)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def script() -> type[Script]:
    return Script


@pytest.fixture
def killed() -> type[Killed]:
    return Killed


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., TrialSpec]:
    """Return a function that makes the spec of a short trial."""

    def make(folder: Path | None = None, *, seed: int = 7, **changes: Any) -> TrialSpec:
        return TrialSpec(
            number=3,
            hyperparameters=complete({**RECIPE, **changes}),
            seed=seed,
            folder=str(folder or tmp_path / "trial"),
        )

    return make


@pytest.fixture
def run(study: PreparedStudy, make_spec: Callable[..., TrialSpec]) -> Callable[..., TrialResult]:
    """Return a function that runs a short trial."""

    def run_short(
        reporter: Script | None = None,
        *,
        study: PreparedStudy = study,
        folder: Path | None = None,
        **changes: Any,
    ) -> TrialResult:
        return run_trial(make_spec(folder, **changes), study, reporter or Script())

    return run_short
