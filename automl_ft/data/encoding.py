"""How texts become tokens, once per study: flat arrays on disk that every trial maps into memory.

The tokenizer comes from outside; nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from automl_ft.data.table import IntArray, TextTable
from automl_ft.data.words import word_numbers
from automl_ft.errors import DataError
from automl_ft.files.atomic import atomic_path

__all__ = [
    "EncodedRow",
    "EncodedSplit",
    "Encoder",
    "choose_max_length",
    "encode",
    "encode_to_fit",
    "token_lengths",
]

_BATCH = 1000
_BATCH_CHARACTERS = 2_000_000
"""What a tokenizer keeps of a text while it works is 50 times the text; long documents go in
smaller batches. Rows of 128 tokens are far below it."""
_PERCENTILE = 99
_VERSION = 1
_ARRAYS: Mapping[str, str] = {
    "input_ids": "int32",
    "offsets": "int64",
    "labels": "int64",
    "word_ids": "int32",
    "token_type_ids": "int8",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedRow:
    """One encoded row; arrays of shape (num_tokens,)."""

    input_ids: IntArray
    """Token ids, special tokens included."""
    word_ids: IntArray
    """Word of each token, rising from 0; -1 for special tokens."""
    token_type_ids: IntArray | None = None
    """Which text a token is of, where the model asks for it."""

    def take(self, indices: NDArray[Any]) -> EncodedRow:
        """Return some tokens of the row.

        Args:
            indices: Token indices in the wanted order, or a mask.

        Returns:
            A row of these tokens.
        """
        types = self.token_type_ids
        return EncodedRow(
            input_ids=self.input_ids[indices],
            word_ids=self.word_ids[indices],
            token_type_ids=None if types is None else types[indices],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedSplit:
    """All rows of a split, end to end; read-only where it was loaded."""

    input_ids: NDArray[np.int32]
    """Token ids of all rows, shape (num_tokens,)."""
    offsets: NDArray[np.int64]
    """Where each row begins, and the end, shape (num_rows + 1,)."""
    labels: NDArray[np.int64]
    """Class ids, shape (num_rows,)."""
    word_ids: NDArray[np.int32]
    """Word of each token in its row; -1 for special tokens; shape (num_tokens,)."""
    token_type_ids: NDArray[np.int8] | None
    """Text of each token, where the model asks for it, shape (num_tokens,)."""
    num_truncated: int
    """Rows that were longer than the maximum length."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, special ones included."""
        return len(self.input_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (num_rows,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> EncodedRow:
        """Return one row as views.

        Args:
            index: The row, from 0.

        Returns:
            Its tokens, unpadded.
        """
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        types = self.token_type_ids
        return EncodedRow(
            input_ids=self.input_ids[part],
            word_ids=self.word_ids[part],
            token_type_ids=None if types is None else types[part],
        )

    def with_rows(self, rows: IntArray, other: EncodedSplit) -> EncodedSplit:
        """Put rows in place of some.

        Args:
            rows: Which ones, rising.
            other: As many rows, encoded for the same model.

        Returns:
            A split whose `num_truncated` is that of `other`: the rest are whole.
        """
        lengths = self.lengths
        lengths[rows] = other.lengths

        def merged(mine: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
            parts, end = [], 0
            for number, row in enumerate(rows):
                parts.append(mine[end : self.offsets[row]])
                parts.append(theirs[other.offsets[number] : other.offsets[number + 1]])
                end = int(self.offsets[row + 1])
            return np.concatenate([*parts, mine[end:]])

        types, others = self.token_type_ids, other.token_type_ids
        return EncodedSplit(
            input_ids=merged(self.input_ids, other.input_ids),
            offsets=_offsets(lengths),
            labels=self.labels,
            word_ids=merged(self.word_ids, other.word_ids),
            token_type_ids=None if types is None or others is None else merged(types, others),
            num_truncated=other.num_truncated,
        )

    def save(self, folder: Path, key: str) -> None:
        """Write the split to a folder, whole or not at all; one that is there is replaced.

        Args:
            folder: The folder; its parent is made where it is missing.
            key: What the arrays depend on, such as a digest of data, tokenizer and length.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        present = {name: array for name, array in arrays.items() if array is not None}
        manifest = {
            "version": _VERSION,
            "key": key,
            "num_truncated": self.num_truncated,
            "sizes": {name: len(array) for name, array in present.items()},
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, array in present.items():
                np.save(temporary / f"{name}.npy", np.asarray(array, dtype=_ARRAYS[name]))
            (temporary / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def load(folder: Path, key: str) -> EncodedSplit | None:
        """Map a saved split into memory.

        Args:
            folder: Where it was saved.
            key: What the arrays must depend on.

        Returns:
            The split, or None if there is none, or one of another key, or a damaged one.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            if (manifest["version"], manifest["key"]) != (_VERSION, key):
                return None
            arrays = _mapped_arrays(folder, manifest["sizes"])
            num_truncated = int(manifest["num_truncated"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None
        if arrays["offsets"][-1] != len(arrays["input_ids"]):
            return None
        types = arrays.pop("token_type_ids", None)
        return EncodedSplit(**arrays, token_type_ids=types, num_truncated=num_truncated)


Encoder: TypeAlias = Callable[[TextTable, Any, int], EncodedSplit]
"""Encodes rows: a table, a tokenizer, and the tokens that a row is cut to."""


def choose_max_length(lengths: IntArray, setting: int | str, model_limit: int) -> int:
    """Decide how many tokens a row may have.

    Args:
        lengths: Tokens of the training rows, special tokens included, shape (num_rows,).
        setting: `data.max_length`: a number, or `auto` for the 99th percentile of the lengths.
        model_limit: Tokens that the model accepts.

    Returns:
        The length, at most `model_limit`.

    Raises:
        DataError: The setting is above what the model accepts.
    """
    if isinstance(setting, str):
        return min(math.ceil(float(np.percentile(lengths, _PERCENTILE))), model_limit)
    if setting > model_limit:
        raise DataError(
            f"`data.max_length` is {setting}, but the model accepts at most {model_limit} tokens."
            f" Set it to {model_limit} or less, or to auto."
        )
    return setting


def token_lengths(table: TextTable, tokenizer: Any) -> NDArray[np.int64]:
    """Count the tokens of each row before any cutting.

    Args:
        table: The rows.
        tokenizer: A transformers tokenizer.

    Returns:
        Tokens with special tokens, shape (num_rows,).
    """
    lengths = [
        len(ids)
        for fields in _field_batches(table.texts)
        for ids in tokenizer(*fields, return_attention_mask=False, verbose=False)["input_ids"]
    ]
    return np.asarray(lengths, dtype=np.int64)


def encode_to_fit(
    table: TextTable, tokenizer: Any, setting: int | str, model_limit: int, encoder: Encoder
) -> tuple[EncodedSplit, int]:
    """Choose the length of the training rows and encode them, each row once.

    Where the length follows from the rows they are encoded at the model's limit first, and only
    those that turn out too long (one in a hundred) are given to the tokenizer again: it alone
    knows how it cuts pairs and on which side.

    Args:
        table: The training rows.
        tokenizer: A transformers tokenizer.
        setting: `data.max_length`.
        model_limit: Tokens that the model accepts.
        encoder: Encodes rows, such as `encode`.

    Returns:
        The encoded rows, equal to `encoder` at the length; and the length.

    Raises:
        DataError: The setting is above what the model accepts.
    """
    if not isinstance(setting, str):
        length = choose_max_length(np.zeros(0, dtype=np.int64), setting, model_limit)
        return encoder(table, tokenizer, length), length
    split = encoder(table, tokenizer, model_limit)
    lengths = _lengths_for_choice(split, table, tokenizer, model_limit)
    length = choose_max_length(lengths, setting, model_limit)
    long = np.flatnonzero(split.lengths > length)
    if not len(long):
        return split, length
    return split.with_rows(long, encoder(table.take(long), tokenizer, length)), length


def _lengths_for_choice(
    split: EncodedSplit, table: TextTable, tokenizer: Any, model_limit: int
) -> NDArray[np.int64]:
    """Return lengths of rows that were cut at the model's limit, with the same chosen length.

    The percentile lies between two rows. True lengths matter only where it falls between a whole
    row and a cut one, and then cut rows are few: those that are full are counted again.
    """
    lengths = split.lengths
    num_whole = len(split) - split.num_truncated
    below = math.floor((len(split) - 1) * _PERCENTILE / 100)
    if split.num_truncated and abs(below + 1 - num_whole) <= 1:  # give or take rounding
        full = np.flatnonzero(lengths >= model_limit)
        lengths[full] = token_lengths(table.take(full), tokenizer)
    return lengths


def encode(table: TextTable, tokenizer: Any, max_length: int) -> EncodedSplit:
    """Tokenize a split, 1000 rows at a time, fewer of long documents.

    A row that the tokenizer turns into nothing becomes a single unknown (or end, or pad) token,
    because no model reads an empty row.

    Args:
        table: The rows.
        tokenizer: A transformers tokenizer, fast or not.
        max_length: Tokens that a row is cut to, special tokens included.

    Returns:
        The encoded rows in their order.
    """
    batches = [
        _encode_batch(fields, tokenizer, max_length) for fields in _field_batches(table.texts)
    ]
    types = [batch.tokens.token_type_ids for batch in batches]
    present = [part for part in types if part is not None]
    return EncodedSplit(
        input_ids=np.concatenate([batch.tokens.input_ids for batch in batches], dtype=np.int32),
        offsets=_offsets(np.concatenate([batch.lengths for batch in batches])),
        labels=np.asarray(table.labels, dtype=np.int64),
        word_ids=np.concatenate([batch.tokens.word_ids for batch in batches], dtype=np.int32),
        token_type_ids=np.concatenate(present, dtype=np.int8) if present else None,
        num_truncated=sum(batch.num_truncated for batch in batches),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _EncodedBatch:
    """Rows of one call of the tokenizer, end to end; arrays per row would outweigh the tokens."""

    tokens: EncodedRow
    lengths: NDArray[np.int64]
    num_truncated: int


def _encode_batch(fields: list[list[str]], tokenizer: Any, max_length: int) -> _EncodedBatch:
    has_types = "token_type_ids" in tokenizer.model_input_names
    batch = _tokenize(fields, tokenizer, max_length, has_types=has_types)
    rows = []
    for number, texts in enumerate(zip(*fields, strict=True)):
        row = _row(batch, number, texts, has_types=has_types)
        is_empty = not len(row.input_ids)
        rows.append(_placeholder(tokenizer, has_types=has_types) if is_empty else row)
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    return _EncodedBatch(
        tokens=EncodedRow(
            input_ids=np.concatenate([row.input_ids for row in rows]),
            word_ids=np.concatenate([row.word_ids for row in rows]),
            token_type_ids=np.concatenate(types) if types else None,
        ),
        lengths=np.asarray([len(row.input_ids) for row in rows], dtype=np.int64),
        num_truncated=_count_truncated(batch, fields, tokenizer, max_length),
    )


def _field_batches(texts: Sequence[tuple[str, ...]]) -> Iterator[list[list[str]]]:
    """Yield the text columns of 1000 rows at a time, or of as many as are not too long."""
    start = characters = 0
    for end, fields in enumerate(texts):
        size = sum(map(len, fields))
        is_full = end - start == _BATCH or characters + size > _BATCH_CHARACTERS
        if is_full and end > start:
            yield _columns(texts[start:end])
            start, characters = end, 0
        characters += size
    if start < len(texts):
        yield _columns(texts[start:])


def _columns(texts: Sequence[tuple[str, ...]]) -> list[list[str]]:
    return [list(column) for column in zip(*texts, strict=True)]


def _offsets(lengths: IntArray) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)], dtype=np.int64)


def _tokenize(
    fields: Sequence[list[str]], tokenizer: Any, max_length: int, *, has_types: bool
) -> Any:
    return tokenizer(
        *fields,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=has_types,
        return_special_tokens_mask=True,
        verbose=False,
    )


def _count_truncated(
    batch: Any, fields: Sequence[list[str]], tokenizer: Any, max_length: int
) -> int:
    if batch.is_fast:
        return sum(bool(encoding.overflowing) for encoding in batch.encodings)
    # A slow tokenizer keeps no overflow: count rows that are full again, without cutting.
    full = [row for row, ids in enumerate(batch["input_ids"]) if len(ids) >= max_length]
    if not full:
        return 0
    uncut = tokenizer(*[[field[row] for row in full] for field in fields], verbose=False)
    return sum(len(ids) > max_length for ids in uncut["input_ids"])


def _row(batch: Any, number: int, texts: Sequence[str], *, has_types: bool) -> EncodedRow:
    special = np.asarray(batch["special_tokens_mask"][number], dtype=bool)
    if batch.is_fast:
        encoding = batch.encodings[number]
        words = word_numbers(
            encoding.word_ids, encoding.sequence_ids, encoding.offsets, special, texts
        )
    else:
        words = np.where(special, -1, np.cumsum(~special) - 1).astype(np.int32)
    types = batch["token_type_ids"][number] if has_types else None
    return EncodedRow(
        input_ids=np.asarray(batch["input_ids"][number], dtype=np.int32),
        word_ids=words,
        token_type_ids=None if types is None else np.asarray(types, dtype=np.int8),
    )


def _placeholder(tokenizer: Any, *, has_types: bool) -> EncodedRow:
    ids = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    token = next((token for token in ids if token is not None), 0)
    return EncodedRow(
        input_ids=np.asarray([token], dtype=np.int32),
        word_ids=np.asarray([-1], dtype=np.int32),
        token_type_ids=np.zeros(1, dtype=np.int8) if has_types else None,
    )


def _mapped_arrays(folder: Path, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Map the arrays of a saved split; a ValueError or KeyError where they are not as promised."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, kind in _ARRAYS.items():
        if name == "token_type_ids" and name not in sizes:
            continue
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if array.shape != (sizes[name],) or array.dtype != kind:
            raise ValueError(f"{name} holds {array.dtype} of {array.shape}, not {sizes[name]}.")
        arrays[name] = array
    return arrays
