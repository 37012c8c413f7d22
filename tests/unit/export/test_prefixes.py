from __future__ import annotations

from automl_ft.export.prefixes import group_by_prefix, prefixes_of

NAMES = [
    "bert.embeddings.word.weight",
    "bert.embeddings.norm.weight",
    "bert.layer.1.weight",
    "bert.layer.10.weight",
    "bert.layer.10.bias",
    "head.weight",
]


def test_a_whole_module_is_one_prefix():
    assert prefixes_of({NAMES[0], NAMES[1]}, NAMES) == ["bert.embeddings."]


def test_everything_below_a_module_merges_upwards():
    assert prefixes_of(set(NAMES[:5]), NAMES) == ["bert."]


def test_a_number_is_no_prefix_of_a_longer_number():
    [prefix] = prefixes_of({"bert.layer.1.weight"}, NAMES)
    assert [name for name in NAMES if name.startswith(prefix)] == ["bert.layer.1.weight"]


def test_a_part_of_a_module_is_named_in_full():
    assert prefixes_of({"bert.layer.10.bias"}, NAMES) == ["bert.layer.10.bias"]


def test_nothing_chosen_is_no_prefix():
    assert prefixes_of(set(), NAMES) == []


def test_groups_give_every_name_its_value():
    values = dict(zip(NAMES, [2, 2, 1, 0, 0, 0], strict=True))
    groups = group_by_prefix(values)
    found = {n: [v for prefix, v in groups.items() if n.startswith(prefix)] for n in NAMES}
    assert found == {name: [value] for name, value in values.items()}
    assert len(groups) == 4
