"""What the tests of the data layer share: small files, small tables, tokenizers built in code."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from automl_ft.config.study import DataConfig
from automl_ft.data.columns import NamedRows
from automl_ft.data.encoding import EncodedSplit
from automl_ft.data.table import Origins, TextTable

WORDS = ["the", "film", "was", "good", "bad", "un", "##believ", "##able", "a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own cache out of the tests."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUTOML_FT_CACHE", str(folder))
    return folder


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as CSV (or TSV by the ending)."""

    def write(name: str, rows: Sequence[Sequence[object]], header: str = "text,label") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
            writer.writerow(header.split(","))
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as JSON Lines."""

    def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def config() -> Callable[..., DataConfig]:
    """Return a function that builds a config whose paths may be `Path`s."""

    def build(**fields: Any) -> DataConfig:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}
        return DataConfig(**plain)

    return build


@pytest.fixture
def named() -> Callable[..., NamedRows]:
    """Return a function that builds rows from (text, label) pairs."""

    def build(
        pairs: Sequence[tuple[str, str | None]],
        source: str = "train.csv",
        groups: Sequence[str | None] | None = None,
    ) -> NamedRows:
        return NamedRows(
            texts=tuple((text,) for text, _ in pairs),
            labels=tuple(label for _, label in pairs),
            origins=Origins.of_source(source, len(pairs)),
            groups=None if groups is None else tuple(groups),
        )

    return build


@pytest.fixture
def table() -> Callable[..., TextTable]:
    """Return a function that builds a table of given texts; labels count up."""

    def build(*texts: str | tuple[str, ...], groups: tuple[str, ...] | None = None) -> TextTable:
        return TextTable(
            texts=tuple((text,) if isinstance(text, str) else text for text in texts),
            labels=np.arange(len(texts), dtype=np.int64),
            origins=Origins.of_source("train.csv", len(texts)),
            groups=groups,
        )

    return build


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of BERT's kind: word pieces, [CLS] a [SEP] b [SEP], token types."""
    vocabulary = {
        t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def unsplit_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of Llama's kind: the whole text is one pre-token; no special tokens."""
    pieces = ["<unk>", "\u2581", *"abcdef", "\u2581a", "\u2581b", "\u2581c", "cd"]
    merges = [("\u2581", "a"), ("\u2581", "b"), ("\u2581", "c"), ("c", "d")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def slow_tokenizer() -> ByT5Tokenizer:
    """A tokenizer written in Python: bytes, one end token."""
    return ByT5Tokenizer()


@pytest.fixture
def encoded() -> Callable[..., EncodedSplit]:
    """Return a function that builds an encoded split of rows of token ids, all plain words."""

    def build(*rows: Sequence[int], has_types: bool = False) -> EncodedSplit:
        lengths = [len(row) for row in rows]
        ids = np.asarray([token for row in rows for token in row], dtype=np.int32)
        words = np.asarray([n for row in rows for n in range(len(row))], dtype=np.int32)
        return EncodedSplit(
            input_ids=ids,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            labels=np.arange(len(rows), dtype=np.int64),
            word_ids=words,
            token_type_ids=np.ones(len(ids), dtype=np.int8) if has_types else None,
            num_truncated=0,
        )

    return build
