"""What each architecture allows, found by trying."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForSequenceClassification

from automl_ft.models.capabilities import find_capabilities
from automl_ft.models.layer_map import map_layers

PACKED = {
    "bert": "first", "distilbert": "first", "roberta": "first", "xlm-roberta": "first",
    "albert": "first", "electra": "first", "gpt2": "last", "llama": "last", "opt": "last",
    "modernbert": "first",
}  # fmt: skip
READ_BLOCK = {"bert", "distilbert", "roberta", "xlm-roberta", "electra"}


def test_find_capabilities_packs_what_allows_it(load, architecture: str):
    loaded = load(architecture, "classifier")
    found = find_capabilities(loaded.model, loaded.layer_map)
    assert (found.packed is not None) == (architecture in PACKED)
    assert found.has_read_block == (architecture in READ_BLOCK)
    assert found.padded.reads == PACKED.get(architecture, found.padded.reads)
    assert found.deepest_prefix == loaded.layer_map.num_layers


def test_scores_that_packed_attention_does_not_compute_are_left_to_the_padded_path():
    config = Gemma2Config(
        vocab_size=100, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, intermediate_size=40, head_dim=8, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    model = Gemma2ForSequenceClassification(config)
    found = find_capabilities(model, map_layers(model, {"score.weight"}))
    assert found.packed is None
    assert "does not run on packed rows" in found.notes[0]


def test_a_head_that_is_not_understood_is_said_once(load, architecture: str):
    loaded = load(architecture)
    sentence = f"Heads of `{type(loaded.model).__name__}` are trained one by one."
    assert sentence not in find_capabilities(loaded.model, loaded.layer_map).notes
    linear = [m for m in loaded.model.modules() if isinstance(m, nn.Linear)]
    last = next(m for m in reversed(linear) if m.out_features == loaded.model.config.num_labels)
    last.register_forward_hook(lambda *call: torch.sin(3 * call[2]))
    assert sentence in find_capabilities(loaded.model, loaded.layer_map).notes
