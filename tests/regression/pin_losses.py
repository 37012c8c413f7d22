"""Pin the losses of short trials: `python tests/regression/pin_losses.py` rewrites the JSON file.

Run it only where a change of the numbers is meant, and say in the changelog why they change. All
that is random comes from NumPy, whose streams are the same everywhere: the weights are drawn here,
and the recipes use no dropout, whose masks differ between processors.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig, TrainingConfig
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import TrialSpec
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.runner import run_trial

PINNED = Path(__file__).with_name("pinned_losses.json")
LABELS = ("bad", "good", "odd")
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "regularised": {
        "weight_decay": 0.9, "l1": 0.3, "label_smoothing": 0.1, "warmup_ratio": 0.2,
        "layerwise_lr_decay": 0.7, "lr_schedule": "cosine", "max_grad_norm": 2.5,
    },
    "augmented": {"token_dropout": 0.2, "word_swap": 0.3, "word_deletion": 0.2, "mixup": 0.4},
    "bottom_layers": {"freezing": "bottom_layers", "frozen_layers": 1},
    "head_only": {"freezing": "head_only", "lr_schedule": "constant_with_warmup"},
    "gradual_unfreezing": {"freezing": "gradual_unfreezing", "unfreezing_pace": 0.7},
}  # fmt: skip


class Listener:
    """Goes on whatever it hears, and remembers the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def progress(self, progress: Progress) -> Decision:
        self.losses.append(progress.train_loss)
        return Decision.CONTINUE

    def report(self, evaluation: Evaluation) -> Decision:
        return Decision.CONTINUE


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Run every recipe.

    Args:
        folder: An empty folder for model, data and checkpoints.

    Returns:
        By recipe: training loss of each step, loss of each validation, and the trial's value.
    """
    study = _study(folder)
    found = {}
    for name, changes in RECIPES.items():
        plain = {"learning_rate": 2e-3, "batch_size": 8, "epochs": 2, "dropout": 0.0, **changes}
        spec = TrialSpec(
            number=0, hyperparameters=complete(plain), seed=5, folder=str(folder / name)
        )
        listener = Listener()
        result = run_trial(spec, study, listener)
        assert result.failure is None, result.failure
        found[name] = {
            "train_loss": listener.losses,
            "validation_loss": [e.metrics["validation_loss"] for e in result.evaluations],
            "f1_macro": result.value,
        }
    return found


def _study(folder: Path) -> PreparedStudy:
    generator = np.random.default_rng(2024)
    _save_model(folder / "model", generator)
    data = DataConfig(
        train=_save_rows(folder / "train.csv", 41, generator),
        validation=_save_rows(folder / "validation.csv", 30, generator),
        test=None,
    )
    config = StudyConfig(
        model=ModelConfig(checkpoint=str(folder / "model")),
        data=data,
        device="cpu",
        training=TrainingConfig(
            micro_batch_size=5, eval_batch_size=16, precision="fp32", validations_per_epoch=2
        ),
    )
    return prepare_study(config, (config.model.checkpoint,), None)


def _save_model(folder: Path, generator: np.random.Generator) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=32,
        num_labels=len(LABELS),
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * generator.standard_normal(parameter.shape)
            is_scale = name.endswith("LayerNorm.weight")
            parameter.copy_(torch.from_numpy(noise + is_scale))
    model.save_pretrained(folder)


def _save_rows(path: Path, number: int, generator: np.random.Generator) -> str:
    """Write texts whose class shows in two or three of their words."""
    rows = [("text", "label")]
    for index in range(number):
        label = index % len(LABELS)
        telling = 20 * label + generator.integers(0, 20, size=3)
        others = generator.integers(0, 60, size=generator.integers(2, 12))
        words = generator.permutation(np.concatenate([telling, others]))
        rows.append((" ".join(f"w{word}" for word in words), LABELS[label]))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def main() -> None:
    """Rewrite the pinned values."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    PINNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
