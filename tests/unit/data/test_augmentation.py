from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from automl_ft.data.augmentation import (
    Augmentation,
    augmenter,
    replacement_token,
    token_dropout,
    word_deletion,
    word_swap,
)
from automl_ft.data.encoding import EncodedRow

MASK = 99
# [CLS] w0 w1 w1 w2 [SEP] w3 w4 [SEP]
WORDS = [-1, 0, 1, 1, 2, -1, 3, 4, -1]
TYPES = [0, 0, 0, 0, 0, 0, 1, 1, 1]


def row(words: list[int] = WORDS, types: list[int] | None = None) -> EncodedRow:
    return EncodedRow(
        input_ids=np.arange(len(words), dtype=np.int32),
        word_ids=np.asarray(words, dtype=np.int32),
        token_type_ids=None if types is None else np.asarray(types, dtype=np.int8),
    )


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_token_dropout_replaces_every_ordinary_token_at_probability_one() -> None:
    found = token_dropout(row(), 1.0, MASK, chance()).input_ids.tolist()
    assert found == [0, MASK, MASK, MASK, MASK, 5, MASK, MASK, 8]


def test_token_dropout_replaces_about_its_share() -> None:
    long = row([-1, *range(20_000), -1])
    found = token_dropout(long, 0.15, 1_000_000, chance()).input_ids
    assert np.mean(found == 1_000_000) == pytest.approx(0.15, abs=0.01)


def test_token_dropout_keeps_the_row_itself_as_it_was() -> None:
    original = row()
    token_dropout(original, 1.0, MASK, chance())
    assert original.input_ids.tolist() == list(range(9))


def test_word_swap_moves_the_tokens_of_a_word_together_and_not_past_special_ones() -> None:
    found = word_swap(row(types=TYPES), 1.0, chance())
    # w0 and w1 change places; w2 has no free neighbour; w3 and w4 change places.
    assert found.input_ids.tolist() == [0, 2, 3, 1, 4, 5, 7, 6, 8]
    assert found.word_ids.tolist() == [-1, 1, 1, 0, 2, -1, 4, 3, -1]
    assert found.token_type_ids is not None
    assert found.token_type_ids.tolist() == TYPES


def test_word_swap_keeps_all_tokens() -> None:
    for seed in range(20):
        found = word_swap(row(), 0.5, chance(seed)).input_ids
        assert sorted(found.tolist()) == list(range(9))


def test_word_swap_happens_about_as_often_as_asked() -> None:
    found = word_swap(row(list(range(30_000))), 0.1, chance()).input_ids
    moved = np.mean(found != np.arange(30_000))
    # A word that was swapped is passed over: p pairs of every 1 + p words move.
    assert moved == pytest.approx(2 * 0.1 / 1.1, abs=0.01)


def test_word_deletion_leaves_out_whole_words() -> None:
    seen = set()
    for seed in range(50):
        found = word_deletion(row(), 0.4, chance(seed)).input_ids.tolist()
        seen.add((2 in found, 3 in found))
    assert seen == {(True, True), (False, False)}


def test_word_deletion_leaves_one_word_of_each_text() -> None:
    for seed in range(20):
        found = word_deletion(row(types=TYPES), 1.0, chance(seed))
        words = [word for word in found.word_ids.tolist() if word >= 0]
        first, second = sorted(set(words))
        assert (first <= 2, second >= 3) == (True, True)


def test_word_deletion_keeps_special_tokens_and_types() -> None:
    found = word_deletion(row(types=TYPES), 1.0, chance())
    assert {0, 5, 8} <= set(found.input_ids.tolist())
    assert found.token_type_ids is not None
    assert [TYPES[token] for token in found.input_ids] == found.token_type_ids.tolist()


def test_word_deletion_leaves_out_about_its_share() -> None:
    found = word_deletion(row(list(range(20_000))), 0.1, chance())
    assert len(found.input_ids) / 20_000 == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("change", [word_swap, word_deletion])
@pytest.mark.parametrize("words", [[], [-1, -1], [-1, 0, -1], [0]])
def test_rows_with_at_most_one_word_stay(change: Any, words: list[int]) -> None:
    found = change(row(words), 1.0, chance())
    assert found.input_ids.tolist() == list(range(len(words)))


def test_augmentation_is_off_by_default() -> None:
    assert not Augmentation().is_active
    assert augmenter(Augmentation(), seed=0, epoch=0) is None


@pytest.mark.parametrize("name", ["token_dropout", "word_swap", "word_deletion"])
def test_each_change_alone_switches_augmentation_on(name: str) -> None:
    augmentation = Augmentation(**{name: 0.5}, replacement_token_id=MASK)
    augment = augmenter(augmentation, seed=0, epoch=0)
    assert augment is not None
    results = [augment(row(), index).input_ids.tolist() for index in range(10)]
    assert any(result != list(range(9)) for result in results)


def test_token_dropout_needs_a_token_to_put_in() -> None:
    with pytest.raises(ValueError, match="replacement_token_id"):
        Augmentation(token_dropout=0.1)


def test_changes_are_applied_together() -> None:
    augmentation = Augmentation(
        token_dropout=1.0, word_swap=1.0, word_deletion=1.0, replacement_token_id=MASK
    )
    found = augmentation.apply(row(), chance()).input_ids
    assert len(found) < 9
    assert set(found.tolist()) == {0, 5, 8, MASK}


ALL = Augmentation(token_dropout=0.3, word_swap=0.3, word_deletion=0.3, replacement_token_id=MASK)


def changed(seed: int, epoch: int, indices: list[int]) -> dict[int, list[int]]:
    augment = augmenter(ALL, seed=seed, epoch=epoch)
    assert augment is not None
    long = row([-1, *range(40), -1])
    return {index: augment(long, index).input_ids.tolist() for index in indices}


def test_a_row_changes_alike_whichever_rows_came_before() -> None:
    assert changed(1, 2, [5])[5] == changed(1, 2, [0, 9, 5])[5]


@pytest.mark.parametrize(("seed", "epoch", "index"), [(2, 2, 5), (1, 3, 5), (1, 2, 6)])
def test_a_row_changes_differently_by_seed_epoch_and_index(
    seed: int, epoch: int, index: int
) -> None:
    assert changed(seed, epoch, [index])[index] != changed(1, 2, [5])[5]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [((4, 1, 0, 3), 4), ((None, 1, 0, 3), 1), ((None, None, 0, 3), 0), ((None,) * 4, None)],
)
def test_a_dropped_token_is_masked_else_unknown_else_pad(
    tokens: tuple[int | None, ...], expected: int | None
) -> None:
    names = ("mask_token_id", "unk_token_id", "pad_token_id", "eos_token_id")
    tokenizer = SimpleNamespace(**dict(zip(names, tokens, strict=True)))
    assert replacement_token(tokenizer) == expected
