from __future__ import annotations

import numpy as np
import pytest
import torch

from automl_ft.export.model import rebuild_model
from automl_ft.export.scoring import logits_of_texts

TEXTS = [("the cat",), ("a pear and a plum of the saw",), ("fox",), ("the owl and hen",)]


@pytest.fixture(params=["bert", "gpt2"])
def rebuilt(request, make_job, tmp_path):
    return rebuild_model(make_job(request.getfixturevalue(f"{request.param}_study"), tmp_path))


def score(rebuilt, texts, batch_size=2):
    model, tokenizer = rebuilt.loaded.model, rebuilt.tokenizer
    return logits_of_texts(model, tokenizer, texts, batch_size=batch_size)


def test_scores_come_in_the_order_of_the_rows(rebuilt):
    together = score(rebuilt, TEXTS)
    alone = np.concatenate([score(rebuilt, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (4, 3)


def test_the_model_is_left_in_eval_mode(rebuilt):
    rebuilt.loaded.model.train()
    score(rebuilt, TEXTS)
    assert not rebuilt.loaded.model.training


def test_no_rows_have_no_scores(rebuilt):
    assert score(rebuilt, []).shape == (0, 3)


def test_a_text_without_any_token_is_scored_as_an_unknown_token(gpt2_study, make_job, tmp_path):
    rebuilt = rebuild_model(make_job(gpt2_study, tmp_path))
    assert rebuilt.tokenizer("")["input_ids"] == []
    with torch.inference_mode():
        unknown = torch.tensor([[rebuilt.tokenizer.unk_token_id]])
        alone = rebuilt.loaded.model(input_ids=unknown).logits
    np.testing.assert_allclose(score(rebuilt, [("",), *TEXTS])[0], alone[0].numpy(), atol=1e-5)


def test_the_longest_rows_come_first(rebuilt):
    lengths = []
    forward = rebuilt.loaded.model.forward

    def watched(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    rebuilt.loaded.model.forward = watched
    score(rebuilt, TEXTS, batch_size=1)
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == 4
