"""What each architecture allows, found by trying."""

from __future__ import annotations

from automl_ft.models.capabilities import find_capabilities

PACKED = {
    "bert": "first", "distilbert": "first", "roberta": "first", "xlm-roberta": "first",
    "albert": "first", "electra": "first", "gpt2": "last", "llama": "last", "opt": "last",
    "modernbert": "first",
}  # fmt: skip
READ_BLOCK = {"bert", "distilbert", "roberta", "xlm-roberta", "electra"}


def test_find_capabilities_packs_what_allows_it(load, architecture: str):
    loaded = load(architecture, "classifier")
    found = find_capabilities(loaded.model, loaded.layer_map)
    print(architecture, found)
    assert (found.packed is not None) == (architecture in PACKED)
    assert found.has_read_block == (architecture in READ_BLOCK)
    assert found.padded.reads == PACKED.get(architecture, found.padded.reads)
    assert found.deepest_prefix == loaded.layer_map.num_layers
