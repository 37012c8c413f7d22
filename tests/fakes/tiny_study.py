"""A real study as small as can be: a BERT of two tiny layers built in code, and a few rows."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import yaml

from automl_ft.config.load import load_config
from automl_ft.config.study import StudyConfig

WORDS = {
    "good": ["fine", "great", "lovely", "nice", "superb"],
    "bad": ["awful", "bad", "dire", "nasty", "poor"],
}
FILLERS = ["the", "a", "film", "plot", "song", "meal", "of", "and", "was", "it", "very", "one"]


def write_model(folder: Path) -> Path:
    """Save an untrained BERT with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *FILLERS, *WORDS["good"], *WORDS["bad"]]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("pad", "unk", "cls", "sep", "mask")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in zip(names, special, strict=True)},
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_rows(file: Path, count: int = 120) -> Path:
    """Write labelled rows; one word of each decides its label."""
    chance = random.Random(0)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(count):
            label = ("good", "bad")[number % 2]
            words = [*chance.choices(FILLERS, k=3), chance.choice(WORDS[label])]
            chance.shuffle(words)
            writer.writerow([" ".join([*words, f"n{number}"]), label])
    return file


def write_study(folder: Path, **changes: Any) -> Path:
    """Write a study file of two configurations with model and rows below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    study = {
        "name": "tiny",
        "model": str(folder / "model"),
        "data": {"path": str(folder / "rows.csv"), "test": None},
        "space": {
            "learning_rate": {"low": 3e-3, "high": 2e-2, "log": True, "default": 1e-2},
            "dropout": {"low": 0.0, "high": 0.3, "default": 0.1},
            "batch_size": 4,
            "epochs": 5,
        },
        "pruner": "none",
        "device": "cpu",
        "budget": {"trials": 2},
        "training": {"threads": 1, "validations_per_epoch": 4},
        **changes,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    return file


def read_study(file: Path) -> StudyConfig:
    """Read a study file as the command line does."""
    return load_config(str(file)).config
