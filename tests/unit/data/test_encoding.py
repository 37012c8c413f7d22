from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl_ft.data import encoding
from automl_ft.data.encoding import (
    EncodedSplit,
    choose_max_length,
    encode,
    encode_to_fit,
    token_lengths,
)
from automl_ft.data.table import TextTable
from automl_ft.errors import DataError

Table = Callable[..., TextTable]


def test_auto_takes_the_99th_percentile_rounded_up() -> None:
    assert choose_max_length(np.arange(1, 102), "auto", 512) == 100
    assert choose_max_length(np.asarray([10] * 50 + [11] * 50 + [99]), "auto", 512) == 11


def test_auto_takes_at_most_what_the_model_accepts() -> None:
    assert choose_max_length(np.asarray([1000] * 10), "auto", 512) == 512


def test_a_given_length_is_taken() -> None:
    assert choose_max_length(np.asarray([1000]), 64, 512) == 64


def test_a_given_length_above_what_the_model_accepts_is_refused() -> None:
    with pytest.raises(DataError, match=r"`data\.max_length` is 600, .* 512 tokens"):
        choose_max_length(np.asarray([1000]), 600, 512)


def test_lengths_count_special_tokens_and_nothing_is_cut(table: Table, word_tokenizer: Any) -> None:
    texts = ["film", "the film was", " ".join(["good"] * 700)]
    assert token_lengths(table(*texts), word_tokenizer).tolist() == [3, 5, 702]


def test_lengths_of_pairs_count_both_texts(table: Table, word_tokenizer: Any) -> None:
    assert token_lengths(table(("film", "the film")), word_tokenizer).tolist() == [6]


def test_encoding_equals_what_the_tokenizer_does_row_by_row(
    table: Table, word_tokenizer: Any
) -> None:
    texts = ["the film was good", "bad", "unbelievable bad film the film was bad"]
    encoded = encode(table(*texts), word_tokenizer, 6)
    for number, text in enumerate(texts):
        expected = word_tokenizer(text, truncation=True, max_length=6)["input_ids"]
        assert encoded.row(number).input_ids.tolist() == expected


def test_encoding_knows_token_types_of_pairs(table: Table, word_tokenizer: Any) -> None:
    types = encode(table(("film", "good")), word_tokenizer, 16).row(0).token_type_ids
    assert types is not None
    assert types.tolist() == [0, 0, 0, 1, 1]


def test_encoding_has_no_token_types_where_the_model_asks_for_none(
    table: Table, unsplit_tokenizer: Any
) -> None:
    encoded = encode(table("a b"), unsplit_tokenizer, 16)
    assert encoded.token_type_ids is None
    assert encoded.row(0).token_type_ids is None


def test_rows_of_many_batches_stay_in_order(table: Table, word_tokenizer: Any) -> None:
    texts = [" ".join(["film"] * (number % 5 + 1)) for number in range(2100)]
    encoded = encode(table(*texts), word_tokenizer, 16)
    assert encoded.lengths.tolist() == [number % 5 + 3 for number in range(2100)]
    assert encoded.labels.tolist() == list(range(2100))
    assert encoded.num_tokens == sum(encoded.lengths)


def test_arrays_are_as_small_as_they_can_be(table: Table, word_tokenizer: Any) -> None:
    encoded = encode(table("film"), word_tokenizer, 16)
    assert encoded.token_type_ids is not None
    found = [encoded.input_ids, encoded.word_ids, encoded.token_type_ids, encoded.labels]
    assert [array.dtype for array in found] == [np.int32, np.int32, np.int8, np.int64]


@pytest.mark.parametrize("fixture", ["word_tokenizer", "slow_tokenizer"])
def test_truncated_rows_are_counted(
    table: Table, fixture: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(fixture)
    word = "a " if fixture == "word_tokenizer" else "a"
    texts = [word * count for count in (1, 3, 4, 5, 9)]
    lengths = token_lengths(table(*texts), tokenizer)
    encoded = encode(table(*texts), tokenizer, int(lengths[2]))
    assert encoded.num_truncated == 2
    assert max(encoded.lengths) == lengths[2]


def test_no_row_is_truncated_where_none_is_long(table: Table, slow_tokenizer: Any) -> None:
    assert encode(table("ab"), slow_tokenizer, 16).num_truncated == 0


def test_a_row_that_tokenizes_to_nothing_becomes_one_unknown_token(
    table: Table, unsplit_tokenizer: Any
) -> None:
    encoded = encode(table("a", "", "b"), unsplit_tokenizer, 16)
    assert encoded.row(1).input_ids.tolist() == [unsplit_tokenizer.unk_token_id]
    assert encoded.row(1).word_ids.tolist() == [-1]
    assert len(encoded) == 3


TOKENIZERS = ["word_tokenizer", "unsplit_tokenizer", "slow_tokenizer"]
ARRAYS = ("input_ids", "offsets", "labels", "word_ids", "token_type_ids", "num_truncated")


def random_texts(count: int, *, is_pair: bool, seed: int = 0) -> list[Any]:
    """Return texts of 1 to 12 words, one in 60 of 30 words or more."""
    chance = np.random.default_rng(seed)
    words = ["a", "b", "film", "the", "unbelievable", "good  bad", "d!", "cd"]

    def text() -> str:
        size = chance.integers(30, 60) if chance.random() < 1 / 60 else chance.integers(1, 13)
        return " ".join(chance.choice(words, size=size))

    return [(text(), text()) if is_pair else text() for _ in range(count)]


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each kind of tokenizer; what a test sets on it is undone."""
    tokenizer = request.getfixturevalue(request.param)
    side = tokenizer.truncation_side
    yield tokenizer
    tokenizer.truncation_side = side


def assert_same_as_twice(
    rows: TextTable, tokenizer: Any, setting: int | str, limit: int
) -> tuple[EncodedSplit, int]:
    """Compare with counting all rows first and encoding them at the length then."""
    length = choose_max_length(token_lengths(rows, tokenizer), setting, limit)
    expected = encode(rows, tokenizer, length)
    found, chosen = encode_to_fit(rows, tokenizer, setting, limit, encode)
    assert chosen == length
    for name in ARRAYS:
        mine, wanted = getattr(found, name), getattr(expected, name)
        assert np.array_equal(mine, wanted), name
        assert getattr(mine, "dtype", int) == getattr(wanted, "dtype", int), name
    return found, length


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("is_pair", [False, True], ids=["single", "pair"])
@pytest.mark.parametrize(("setting", "limit"), [("auto", 10_000), ("auto", 12), (9, 10_000)])
def test_encoding_once_equals_counting_first_and_encoding_then(
    table: Table, any_tokenizer: Any, setting: int | str, limit: int, is_pair: bool, side: str
) -> None:
    any_tokenizer.truncation_side = side
    rows = table(*random_texts(700, is_pair=is_pair))
    found, _ = assert_same_as_twice(rows, any_tokenizer, setting, limit)
    assert found.num_truncated > 0


@pytest.mark.parametrize("limit", range(3, 80, 4))
def test_the_length_is_right_wherever_the_limit_of_the_model_falls(
    table: Table, word_tokenizer: Any, limit: int
) -> None:
    for count in (1, 2, 99, 100, 101, 102, 150, 201):
        rows = table(*random_texts(count, is_pair=False, seed=count))
        assert_same_as_twice(rows, word_tokenizer, "auto", limit)


def test_a_percentile_between_a_whole_and_a_cut_row_counts_the_cut_ones(
    table: Table, word_tokenizer: Any
) -> None:
    rows = table(*["film"] * 50, " ".join(["film"] * 100))
    _, length = assert_same_as_twice(rows, word_tokenizer, "auto", 60)
    assert length == 53  # halfway from 3 to the 102 tokens that the model never reads


def test_no_row_is_tokenized_twice_where_none_is_cut(table: Table, word_tokenizer: Any) -> None:
    seen: list[int] = []

    def count(rows: TextTable, tokenizer: Any, max_length: int) -> EncodedSplit:
        seen.append(len(rows))
        return encode(rows, tokenizer, max_length)

    encode_to_fit(table(*["film"] * 300), word_tokenizer, "auto", 512, count)
    encode_to_fit(table(*["film"] * 300), word_tokenizer, 16, 512, count)
    assert seen == [300, 300]


def test_only_the_longest_rows_are_tokenized_again(table: Table, word_tokenizer: Any) -> None:
    seen: list[int] = []

    def count(rows: TextTable, tokenizer: Any, max_length: int) -> EncodedSplit:
        seen.append(len(rows))
        return encode(rows, tokenizer, max_length)

    texts = [" ".join(["film"] * number) for number in range(1, 301)]
    split, _ = encode_to_fit(table(*texts), word_tokenizer, "auto", 512, count)
    assert seen == [300, 2]
    assert split.num_truncated == 2


def test_a_given_length_above_what_the_model_accepts_is_refused_before_encoding(
    table: Table, word_tokenizer: Any
) -> None:
    def refuse(*_: Any) -> EncodedSplit:
        raise AssertionError("encoded")

    with pytest.raises(DataError, match=r"`data\.max_length` is 600"):
        encode_to_fit(table("film"), word_tokenizer, 600, 512, refuse)


def test_long_documents_go_to_the_tokenizer_a_few_at_a_time(
    table: Table, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["film good", "bad " * 50, "film", "good", "the film " * 20, "bad"]
    expected = encode(table(*texts), word_tokenizer, 16)
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 20)
    found = encode(table(*texts), word_tokenizer, 16)
    for name in ARRAYS:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert token_lengths(table(*texts), word_tokenizer).tolist() == [4, 52, 3, 3, 42, 3]


@pytest.fixture
def saved(table: Table, word_tokenizer: Any, tmp_path: Path) -> tuple[EncodedSplit, Path]:
    encoded = encode(table("the film", "good", "unbelievable " * 9), word_tokenizer, 8)
    folder = tmp_path / "cache" / "train"
    encoded.save(folder, "key")
    return encoded, folder


def test_a_saved_split_is_read_back_equal(saved: tuple[EncodedSplit, Path]) -> None:
    encoded, folder = saved
    loaded = EncodedSplit.load(folder, "key")
    assert loaded is not None
    for name in ("input_ids", "offsets", "labels", "word_ids", "token_type_ids"):
        assert np.array_equal(getattr(loaded, name), getattr(encoded, name)), name
    assert loaded.num_truncated == encoded.num_truncated == 1


def test_a_loaded_split_is_mapped_and_read_only(saved: tuple[EncodedSplit, Path]) -> None:
    loaded = EncodedSplit.load(saved[1], "key")
    assert loaded is not None
    assert isinstance(loaded.input_ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        loaded.input_ids[0] = 1


def test_a_split_without_token_types_is_read_back(
    table: Table, unsplit_tokenizer: Any, tmp_path: Path
) -> None:
    encode(table("a b"), unsplit_tokenizer, 8).save(tmp_path / "x", "key")
    loaded = EncodedSplit.load(tmp_path / "x", "key")
    assert loaded is not None
    assert loaded.token_type_ids is None


def test_saving_again_replaces_what_was_there(
    saved: tuple[EncodedSplit, Path], table: Table, unsplit_tokenizer: Any
) -> None:
    encode(table("a b"), unsplit_tokenizer, 8).save(saved[1], "new")
    assert EncodedSplit.load(saved[1], "key") is None
    loaded = EncodedSplit.load(saved[1], "new")
    assert loaded is not None
    assert len(loaded) == 1


def test_saving_leaves_nothing_beside_the_folder(saved: tuple[EncodedSplit, Path]) -> None:
    assert [item.name for item in saved[1].parent.iterdir()] == ["train"]


def test_a_split_of_another_key_is_not_loaded(saved: tuple[EncodedSplit, Path]) -> None:
    assert EncodedSplit.load(saved[1], "other") is None


def test_a_folder_that_is_missing_is_not_loaded(tmp_path: Path) -> None:
    assert EncodedSplit.load(tmp_path / "none", "key") is None


def remove_array(folder: Path) -> None:
    (folder / "word_ids.npy").unlink()


def shorten_array(folder: Path) -> None:
    np.save(folder / "labels.npy", np.zeros(1, dtype=np.int64))


def retype_array(folder: Path) -> None:
    np.save(folder / "labels.npy", np.zeros(3, dtype=np.float64))


def tear_array(folder: Path) -> None:
    path = folder / "input_ids.npy"
    path.write_bytes(path.read_bytes()[:-4])


def empty_array(folder: Path) -> None:
    (folder / "input_ids.npy").write_bytes(b"")


def tear_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"version": 1,')


def foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def newer_version(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


def tear_offsets(folder: Path) -> None:
    np.save(folder / "offsets.npy", np.zeros(4, dtype=np.int64))


def forget_an_array(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sizes"]["word_ids"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        remove_array,
        shorten_array,
        retype_array,
        tear_array,
        empty_array,
        tear_manifest,
        foreign_manifest,
        newer_version,
        tear_offsets,
        forget_an_array,
    ],
)
def test_a_damaged_split_is_not_loaded(
    saved: tuple[EncodedSplit, Path], damage: Callable[[Path], None]
) -> None:
    damage(saved[1])
    assert EncodedSplit.load(saved[1], "key") is None
