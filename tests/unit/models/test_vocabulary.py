"""A cut embedding trains as the whole one does, and becomes it again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from automl_ft.models.vocabulary import (
    CutEmbedding,
    UnusedRows,
    Vocabulary,
    compact,
    expand_saved,
    find_vocabulary,
    vocabulary_notes,
)

PACKED = (
    "bert", "distilbert", "roberta", "xlm-roberta", "albert", "electra", "gpt2", "llama", "opt",
    "modernbert",
)  # fmt: skip
NUM_TOKENS, WIDTH = 20, 6
USED = np.array([0, 1, 3, 7, 8, 12])
CLOSE = {"atol": 1e-6, "rtol": 1e-5}
"""Ten steps of fp32, of which the whole embedding rounds each and the cut one the product."""


def vocabulary(size: int = NUM_TOKENS, used: np.ndarray = USED) -> Vocabulary:
    lookup = np.full(size, -1)
    lookup[used] = np.arange(len(used))
    return Vocabulary(tokens=used, lookup=lookup)


class Model(nn.Module):
    """Stands for a pretrained model: an embedding and a head."""

    def __init__(self, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.words = embedding or nn.Embedding(NUM_TOKENS, WIDTH, padding_idx=3)
        self.head = nn.Linear(WIDTH, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids))


def test_the_tokens_of_all_rows_are_in_use():
    found = find_vocabulary(Model(), [np.array([[7, 3], [8, 7]]), np.array([12])], [])
    assert found.tokens.tolist() == [0, 1, 3, 7, 8, 12]
    assert found.lookup[found.tokens].tolist() == list(range(6))
    assert (found.lookup < 0).sum() == NUM_TOKENS - 6


def test_tokens_that_may_be_put_in_are_in_use():
    found = find_vocabulary(Model(), [np.array([7])], [9, -1, NUM_TOKENS + 3])
    assert found.tokens.tolist() == [0, 1, 7, 9]


def test_an_embedding_that_is_mostly_in_use_stays_whole():
    assert find_vocabulary(Model(), [np.arange(16)], []) is None
    assert find_vocabulary(Model(), [np.arange(15)], []) is not None


@pytest.mark.parametrize(
    "embedding",
    [nn.EmbeddingBag(NUM_TOKENS, WIDTH), nn.Embedding(NUM_TOKENS, WIDTH, max_norm=1.0)],
)
def test_an_embedding_of_another_kind_stays_whole(embedding):
    assert find_vocabulary(Model(embedding), [np.array([7])], []) is None


def test_a_cut_embedding_gives_the_rows_of_the_whole_one():
    model, words = Model(), vocabulary()
    whole = model.words.weight.detach().clone()
    assert compact(model, words) == "words.weight"
    assert torch.equal(model.words(torch.arange(6)), whole[USED])
    assert (model.words.num_embeddings, model.words.padding_idx) == (6, 2)


def test_padding_that_is_not_in_use_is_gone():
    model = Model(nn.Embedding(NUM_TOKENS, WIDTH, padding_idx=5))
    compact(model, vocabulary())
    assert model.words.padding_idx is None


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_cut_embedding_is_frozen_if_the_whole_one_was(is_trained):
    model = Model()
    model.words.weight.requires_grad_(is_trained)
    compact(model, vocabulary())
    assert model.words.weight.requires_grad == is_trained


@pytest.mark.parametrize("name", PACKED)
def test_the_gradient_of_a_cut_embedding_holds_the_rows_of_the_whole_ones(
    name, load_once, fast, rows, plain, pack_rows
):
    whole = plain(name)
    loaded = load_once(name)
    capabilities = fast(name).capabilities
    used = np.unique(np.concatenate([[0, 1], *[ids.numpy() for ids in rows.ids]]))
    words = vocabulary(100, used)
    cut = compact(loaded.model, words)
    view = capabilities.packed_model(loaded.model.train(), loaded.layer_map)
    inputs = pack_rows()
    ids = torch.from_numpy(words.lookup[inputs.input_ids])
    with view.scores(dataclasses.replace(inputs, input_ids=ids)) as scores:
        torch.nn.functional.cross_entropy(scores, rows.labels).backward()
    torch.testing.assert_close(scores, whole.logits, atol=1e-5, rtol=1e-5)
    gradients = {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}
    expanded = torch.zeros_like(whole.gradients[cut])
    expanded[words.tokens] = gradients.pop(cut)
    for parameter, expected in [(expanded, whole.gradients[cut])] + [
        (gradient, whole.gradients[parameter]) for parameter, gradient in gradients.items()
    ]:
        scale = max(float(expected.norm()), 1e-2)
        assert float((parameter - expected).norm()) <= 1e-5 * scale


def train(model: Model, ids: list[torch.Tensor], cut: CutEmbedding | None, l1: float) -> None:
    """Train with AdamW and a soft threshold, with rates that change; written out."""
    optimizer = torch.optim.AdamW(
        [{"params": [model.words.weight], "is_decayed": True}, {"params": model.head.parameters(),
          "is_decayed": False, "weight_decay": 0.0}],
        lr=0.0, weight_decay=0.3,
    )  # fmt: skip
    for step, batch in enumerate(ids):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (step + 1)
        model(batch).square().sum().backward()
        optimizer.step()
        if l1:
            with torch.no_grad():
                words = model.words.weight
                threshold = optimizer.param_groups[0]["lr"] * l1
                words.copy_(words.sign() * (words.abs() - threshold).clamp(min=0))
        if cut is not None:
            cut.step(optimizer, l1)
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("l1", [0.0, 0.05, 0.6])
def test_training_it_leaves_every_row_as_training_the_whole_one(l1: float):
    torch.manual_seed(0)
    draws = np.random.default_rng(0)
    words = vocabulary()
    whole, model = Model(), Model()
    model.load_state_dict(whole.state_dict())
    pretrained = {name: value.detach().clone() for name, value in whole.named_parameters()}
    batches = [draws.choice(USED[3:], 4) for _ in range(10)]
    train(whole, [torch.from_numpy(batch) for batch in batches], None, l1)
    name = compact(model, words)
    cut = CutEmbedding(
        name=name, parameter=model.words.weight, vocabulary=words, unused=UnusedRows()
    )
    train(model, [torch.from_numpy(words.lookup[batch]) for batch in batches], cut, l1)
    saved = {n: p.detach() for n, p in model.named_parameters()} | cut.saved()
    found = expand_saved(saved, pretrained)
    assert set(found) == set(pretrained)
    for parameter, expected in whole.named_parameters():
        torch.testing.assert_close(found[parameter], expected.detach(), **CLOSE)
    unused = np.setdiff1d(np.arange(NUM_TOKENS), USED)
    assert not torch.equal(found[name][unused], pretrained[name][unused])
    if l1 == 0.6:
        assert (found[name][unused] == 0).any()


def test_steps_while_it_is_frozen_do_not_count():
    model, words = Model(), vocabulary()
    name = compact(model, words)
    unused = UnusedRows()
    cut = CutEmbedding(name=name, parameter=model.words.weight, vocabulary=words, unused=unused)
    optimizer = torch.optim.AdamW(
        [{"params": [model.words.weight], "is_decayed": True}], lr=0.1, weight_decay=0.5
    )
    cut.step(optimizer, 0.3)
    assert unused.to_plain() == [1.0, 0.0]


def test_l1_spares_an_embedding_that_is_not_decayed():
    model, words = Model(), vocabulary()
    name = compact(model, words)
    unused = UnusedRows()
    cut = CutEmbedding(name=name, parameter=model.words.weight, vocabulary=words, unused=unused)
    model.words.weight.grad = torch.ones_like(model.words.weight)
    optimizer = torch.optim.AdamW(
        [{"params": [model.words.weight], "is_decayed": False}], lr=0.1, weight_decay=0.0
    )
    cut.step(optimizer, 0.3)
    assert unused.to_plain() == [1.0, 0.0]


def test_parameters_without_a_cut_embedding_are_as_they_were():
    saved = {"head.weight": torch.ones(2)}
    assert expand_saved(saved, {}) == saved


def test_a_cut_embedding_of_another_model_is_refused():
    cut = CutEmbedding(
        name="words.weight",
        parameter=torch.ones(6, WIDTH),
        vocabulary=vocabulary(),
        unused=UnusedRows(),
    )
    saved = {"words.weight": torch.ones(6, WIDTH)} | cut.saved()
    with pytest.raises(KeyError, match=r"words\.weight"):
        expand_saved(saved, {"other": torch.ones(NUM_TOKENS, WIDTH)})
    with pytest.raises(IndexError):
        expand_saved(saved, {"words.weight": torch.ones(5, WIDTH)})


WHOLE = "The embedding of `Model` is kept whole, "


@pytest.fixture
def small_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the embedding of the tests be large enough for a word."""
    monkeypatch.setattr("automl_ft.models.vocabulary._MATTERS", NUM_TOKENS * WIDTH)


def notes(model: nn.Module, *used: int, is_packed: bool) -> tuple[str, ...]:
    return vocabulary_notes(model, [np.array(used, dtype=int)], [], is_packed=is_packed)


def test_a_cut_embedding_needs_no_word(small_matters):
    assert notes(Model(), 3, 7, is_packed=True) == ()


def test_an_embedding_that_is_whole_for_its_padded_batches_is_told(small_matters):
    (sentence,) = notes(Model(), 3, 7, is_packed=False)
    assert sentence == WHOLE + "as its batches are padded: 4 of 20 tokens in use."


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_embedding_that_is_mostly_in_use_is_told(small_matters, is_packed):
    (sentence,) = notes(Model(), *range(18), is_packed=is_packed)
    assert sentence == WHOLE + "as most of it is needed: 18 of 20 tokens in use."


def test_an_embedding_of_its_own_kind_is_told(small_matters):
    model = Model(nn.Embedding(NUM_TOKENS, WIDTH, max_norm=1.0))
    (sentence,) = notes(model, 3, is_packed=True)
    assert sentence == WHOLE + "as it is of a kind of its own: 3 of 20 tokens in use."


def test_an_embedding_that_another_part_shares_stays_whole_and_is_told(small_matters):
    model = Model()
    model.decoder = nn.Linear(WIDTH, NUM_TOKENS)
    assert find_vocabulary(model, [np.array([7])], []) is not None
    model.decoder.weight = model.words.weight
    assert find_vocabulary(model, [np.array([7])], []) is None
    (sentence,) = notes(model, 7, is_packed=True)
    assert sentence == WHOLE + "as another part of the model shares it: 3 of 20 tokens in use."


def test_a_small_embedding_that_is_whole_is_not_worth_a_word():
    assert notes(Model(), 3, is_packed=False) == ()
