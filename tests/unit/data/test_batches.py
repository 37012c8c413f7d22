from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from automl_ft.data.batches import (
    Padding,
    bucketed_order,
    collate,
    eval_batches,
    pad_batch,
    training_order,
)
from automl_ft.data.encoding import EncodedRow, EncodedSplit

Encoded = Callable[..., EncodedSplit]
RIGHT = Padding(token_id=9)
LEFT = Padding(token_id=9, side="left", token_type_id=3)


def test_training_order_holds_every_row_once() -> None:
    assert sorted(training_order(50, 0, 0).tolist()) == list(range(50))


def test_training_order_is_the_same_for_the_same_seed_and_epoch() -> None:
    assert training_order(50, 2, 7).tolist() == training_order(50, 2, 7).tolist()


@pytest.mark.parametrize(("epoch", "seed"), [(1, 7), (2, 8), (7, 2)])
def test_training_order_differs_between_epochs_and_seeds(epoch: int, seed: int) -> None:
    assert training_order(50, epoch, seed).tolist() != training_order(50, 2, 7).tolist()


LENGTHS = np.random.default_rng(3).integers(1, 100, 1003)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 500, 1003, 2000])
@pytest.mark.parametrize("num_rows", [1, 5, 1003])
def test_bucketed_order_holds_every_row_once(num_rows: int, batch_size: int) -> None:
    order = bucketed_order(LENGTHS[:num_rows], batch_size, 0, 0)
    assert sorted(order.tolist()) == list(range(num_rows))


def padding_share(order: np.ndarray, batch_size: int) -> float:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    padded = sum(len(batch) * int(LENGTHS[batch].max()) for batch in batches)
    return 1 - int(LENGTHS.sum()) / padded


def test_bucketed_batches_need_little_padding() -> None:
    assert padding_share(training_order(len(LENGTHS), 0, 0), 8) > 0.4
    assert padding_share(bucketed_order(LENGTHS, 8, 0, 0), 8) < 0.07


def test_bucketed_batches_do_not_come_by_length() -> None:
    order = bucketed_order(LENGTHS, 8, 0, 0)
    means = LENGTHS[order[:1000]].reshape(-1, 8).mean(1)
    # Of 125 independent numbers this correlation has a standard deviation of 0.09.
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.35
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.35


def test_rows_meet_others_in_each_epoch() -> None:
    first, second = (
        {frozenset(batch) for batch in bucketed_order(LENGTHS, 8, epoch, 0)[:1000].reshape(-1, 8)}
        for epoch in (0, 1)
    )
    assert not first & second


def test_bucketed_order_is_the_same_for_the_same_seed_and_epoch() -> None:
    first, again = (bucketed_order(LENGTHS, 8, 2, 7) for _ in range(2))
    assert first.tolist() == again.tolist()


@pytest.mark.parametrize(("epoch", "seed"), [(1, 7), (2, 8), (7, 2)])
def test_bucketed_order_differs_between_epochs_and_seeds(epoch: int, seed: int) -> None:
    other = bucketed_order(LENGTHS, 8, epoch, seed)
    assert other.tolist() != bucketed_order(LENGTHS, 8, 2, 7).tolist()


def test_rows_that_fill_no_batch_come_last_as_they_fell() -> None:
    order = bucketed_order(LENGTHS, 8, 0, 0)
    assert order[1000:].tolist() == training_order(1003, 0, 0)[1000:].tolist()


def test_rows_of_one_length_stay_random() -> None:
    order = bucketed_order(np.full(64, 5), 8, 0, 0)
    batches = {frozenset(batch) for batch in training_order(64, 0, 0).reshape(-1, 8)}
    assert {frozenset(batch) for batch in order.reshape(-1, 8)} == batches


def test_eval_batches_hold_every_row_once(encoded: Encoded) -> None:
    split = encoded(*[[1] * (number % 4 + 1) for number in range(11)])
    batches = list(eval_batches(split.lengths, 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(11))


def test_eval_batches_begin_with_the_longest_rows(encoded: Encoded) -> None:
    split = encoded([1], [1, 2, 3], [1, 2], [1, 2, 3])
    assert [batch.tolist() for batch in eval_batches(split.lengths, 2)] == [[1, 3], [2, 0]]


def test_rows_are_filled_up_on_the_right(encoded: Encoded) -> None:
    batch = collate(encoded([1, 2, 3], [4]), [0, 1], RIGHT)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_are_filled_up_on_the_left_where_the_model_wants_it(encoded: Encoded) -> None:
    batch = collate(encoded([1, 2, 3], [4], has_types=True), [0, 1], LEFT)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1], [3, 3, 1]]


def test_token_types_are_there_only_where_rows_have_them(encoded: Encoded) -> None:
    row = encoded([1, 2]).row(0)
    assert set(pad_batch([row], RIGHT)) == {"input_ids", "attention_mask"}


def test_batches_follow_the_given_rows_and_carry_their_labels(encoded: Encoded) -> None:
    batch = collate(encoded([1], [2], [3]), np.asarray([2, 0]), RIGHT)
    assert batch["input_ids"].tolist() == [[3], [1]]
    assert batch["labels"].tolist() == [2, 0]


def test_batches_are_int64_and_own_their_memory(encoded: Encoded) -> None:
    batch = collate(encoded([1], [2], has_types=True), [0, 1], RIGHT)
    assert len(batch) == 4
    for array in batch.values():
        assert array.dtype == np.int64
        assert array.flags.writeable


def test_batches_are_padded_to_their_own_longest_row(encoded: Encoded) -> None:
    assert collate(encoded([1, 2, 3, 4], [5], [6]), [1, 2], RIGHT)["input_ids"].shape == (2, 1)


def test_augmentation_is_given_each_row_with_its_index(encoded: Encoded) -> None:
    seen: list[tuple[list[int], int]] = []

    def shorten(row: EncodedRow, index: int) -> EncodedRow:
        seen.append((row.input_ids.tolist(), index))
        return row.take(np.asarray([0]))

    batch = collate(encoded([1, 2], [3, 4, 5]), [1, 0], RIGHT, shorten)
    assert seen == [([3, 4, 5], 1), ([1, 2], 0)]
    assert batch["input_ids"].tolist() == [[3], [1]]
