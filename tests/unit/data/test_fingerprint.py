from __future__ import annotations

import hashlib

import pytest

from automl_ft.data.fingerprint import combined_fingerprint, rows_fingerprint, text_key

ROWS = [("a film",), ("a play",)]


@pytest.mark.parametrize("other", ["A  Film ", "a\nfilm", "\uff41 film"])
def test_texts_that_differ_in_case_space_or_unicode_form_share_a_key(other: str) -> None:
    assert text_key((other,)) == text_key(("a film",))


@pytest.mark.parametrize("other", ["a film.", "afilm", "a films"])
def test_texts_that_differ_in_words_or_punctuation_have_keys_of_their_own(other: str) -> None:
    assert text_key((other,)) != text_key(("a film",))


def test_pair_keys_know_where_the_first_text_ends() -> None:
    assert text_key(("a b", "c")) != text_key(("a", "b c"))


def test_fingerprint_is_the_sha256_of_framed_fields_as_stored_studies_expect() -> None:
    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    row = number(1) + number(6) + b"a film" + number(3) + b"pos"
    assert rows_fingerprint([("a film",)], ["pos"]) == hashlib.sha256(row).hexdigest()


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (ROWS[::-1], ["pos", "neg"]),
        (ROWS, ["neg", "pos"]),
        ([("a film ",), ("a play",)], ["pos", "neg"]),
        ([("a film", ""), ("a play", "")], ["pos", "neg"]),
    ],
    ids=["order", "labels", "white space", "fields"],
)
def test_fingerprint_depends_on_every_row(rows: list[tuple[str, ...]], labels: list[str]) -> None:
    assert rows_fingerprint(rows, labels) != rows_fingerprint(ROWS, ["pos", "neg"])


def test_fingerprint_refuses_labels_that_do_not_match_the_rows() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rows_fingerprint(ROWS, ["pos"])


def test_fingerprint_takes_lone_surrogates() -> None:
    assert len(rows_fingerprint([("\ud800",)], ["x"])) == 64


def test_combined_fingerprint_does_not_depend_on_the_order_of_splits() -> None:
    assert combined_fingerprint({"a": "1", "b": "2"}) == combined_fingerprint({"b": "2", "a": "1"})


def test_combined_fingerprint_depends_on_which_split_rows_are_in() -> None:
    assert combined_fingerprint({"a": "1", "b": "2"}) != combined_fingerprint({"a": "2", "b": "1"})
