"""One dropout value reaches every dropout of an architecture, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from automl_ft.models.dropout import (
    DropoutStream,
    apply_dropout,
    dropout_overrides,
    dropout_probability,
    use_stream,
)

KEYS = {
    "bert": {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
    "distilbert": {"dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"},
    "roberta": {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
    "xlm-roberta": {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
    "albert": {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"},
    "electra": {
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        "summary_last_dropout",
    },
    "deberta-v2": {"hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout"},
    "xlnet": {"dropout", "summary_last_dropout"},
    "gpt2": {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"},
    "llama": {"attention_dropout"},
    "opt": {"dropout", "attention_dropout"},
    "modernbert": {"embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout"},
    "mpnet": {"hidden_dropout_prob", "attention_probs_dropout_prob"},
}  # fmt: skip


def probabilities(model: nn.Module) -> list[float]:
    """Return every dropout probability: of modules, and of those that modules hold as a number."""
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in model.modules():
        found += [
            value
            for name, value in vars(module).items()
            if "dropout" in name and isinstance(value, float)
        ]
    return found


def test_the_keys_are_the_dropouts_of_the_config(architecture):
    overrides = dropout_overrides(AutoConfig.for_model(architecture), 0.25)
    assert overrides == dict.fromkeys(KEYS[architecture], 0.25)


def test_layer_dropping_and_flags_are_no_dropout():
    assert "layerdrop" not in dropout_overrides(AutoConfig.for_model("opt"), 0.25)
    assert "token_dropout" not in dropout_overrides(AutoConfig.for_model("esm"), 0.25)


def test_a_value_reaches_every_dropout_of_the_model(architecture, load):
    found = probabilities(load(architecture, dropout=0.37).model)
    assert len(found) >= 3  # one in each block at least
    assert set(found) == {0.37}


def test_zero_makes_train_mode_deterministic(architecture, load, batch):
    model = load(architecture, dropout=0.0).model.train()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_half_makes_train_mode_random(architecture, load, batch):
    model = load(architecture, dropout=0.5).model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_none_keeps_the_configs_own_values(load):
    changes = {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.22}
    model = load("bert", dropout=None, **changes).model
    assert {round(p, 2) for p in probabilities(model)} == {0.11, 0.22}


def test_dropout_of_a_nested_text_config_is_set():
    config = AutoConfig.for_model("gemma3")
    apply_dropout(config, 0.25)
    assert config.text_config.attention_dropout == 0.25


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_what_was_set_is_saved_with_the_model(load, value, tmp_path):
    load("bert", dropout=value).model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).hidden_dropout_prob == value


def test_the_probability_of_a_layer_is_known_with_and_without_a_stream():
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 2), nn.AlphaDropout(0.3))
    assert [dropout_probability(layer) for layer in model] == [0.3, None, None]
    use_stream(model, DropoutStream(0))
    assert [dropout_probability(layer) for layer in model] == [0.3, None, None]
