"""A head gives a base's output the scores that the whole model gives."""

from __future__ import annotations

import pytest
import torch

from automl_ft.models.classifier import at_positions, head_logits, one_token_each

CPU = torch.device("cpu")


def test_a_head_run_apart_gives_the_whole_models_scores(architecture, fast, rows):
    fitted = fast(architecture)
    fitted.model.eval()
    side = "left" if architecture == "xlnet" else "right"
    inputs = rows.padded(fitted.model.config.pad_token_id, side=side)
    output = fitted.model.base_model(**inputs)
    found = head_logits(fitted.model, output, inputs)
    assert torch.equal(found, fitted.model(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_head_runs_on_the_read_positions_alone(name, fast, rows):
    fitted = fast(name)
    fitted.model.eval()
    padding = fitted.model.config.pad_token_id
    inputs = rows.padded(padding)
    output = fitted.model.base_model(**inputs)
    reads = [len(ids) - 1 if name == "gpt2" else 0 for ids in rows.ids]
    hidden = output.last_hidden_state[torch.arange(len(reads)), reads][:, None]
    tokens = one_token_each(len(reads), padding, CPU)
    found = head_logits(fitted.model, at_positions(output, hidden), tokens)
    torch.testing.assert_close(found, fitted.model(**inputs).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("padding", [None, 0, 1, 5])
def test_rows_of_one_token_hold_no_padding(padding):
    found = one_token_each(3, padding, CPU)
    assert found["input_ids"].shape == found["attention_mask"].shape == (3, 1)
    assert padding not in found["input_ids"].flatten().tolist()
    assert found["attention_mask"].all()
