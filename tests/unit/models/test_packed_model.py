"""Packed rows give the losses and gradients of the plain model, whatever is stored or cut."""

from __future__ import annotations

import pytest
import torch

from automl_ft.models.capabilities import find_capabilities
from automl_ft.models.dropout import DropoutStream, use_stream
from automl_ft.models.packed_model import PackedInputs
from automl_ft.models.packing import pack

PACKED = (
    "bert", "distilbert", "roberta", "xlm-roberta", "albert", "electra", "gpt2", "llama", "opt",
    "modernbert",
)  # fmt: skip
WITH_READ_BLOCK = ("bert", "distilbert", "roberta", "xlm-roberta", "electra")
WITH_TYPES = ("bert", "albert", "electra", "roberta")
NUM_DRAWS = 150
PREFIXES = [(name, k) for name in PACKED for k in range(1, 2 if name == "albert" else 4)]


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_have_the_gradients_of_padded_ones(name, fast, pack_rows, check_step):
    check_step(fast(name).packed(use_read_block=False), pack_rows(), name)


@pytest.mark.parametrize("name", WITH_READ_BLOCK)
def test_a_top_block_where_the_head_reads_has_the_gradients_of_a_whole_one(
    name, fast, pack_rows, check_step
):
    view = fast(name).packed()
    assert view.read_block is not None
    check_step(view, pack_rows(), name)


@pytest.mark.parametrize("name", WITH_TYPES)
@pytest.mark.parametrize("use_read_block", [False, True])
def test_token_types_are_those_of_each_token(
    name, use_read_block, fast, plain, pack_rows, check_step
):
    assert plain(name, has_types=True).loss != plain(name).loss
    view = fast(name).packed(use_read_block=use_read_block)
    check_step(view, pack_rows(has_types=True), name, has_types=True)


@pytest.mark.parametrize(("name", "num_blocks"), PREFIXES)
def test_stored_activations_stand_in_for_frozen_blocks(
    name, num_blocks, fast, pack_rows, check_step, freeze
):
    view, inputs = fast(name).packed(), pack_rows()
    freeze(view, num_blocks)
    hidden = view.prefix(inputs, num_blocks)
    check_step(view, inputs, name, hidden, num_blocks)


@pytest.mark.parametrize("name", [name for name in PACKED if name != "albert"])
def test_a_prefix_of_no_block_is_the_embeddings(name, fast, pack_rows, check_step, freeze):
    view, inputs = fast(name).packed(), pack_rows()
    freeze(view, 0)
    check_step(view, inputs, name, view.prefix(inputs, 0), 0)


@pytest.mark.parametrize("name", PACKED)
def test_a_whole_prefix_is_one_row_for_each_row(name, fast, pack_rows, rows):
    fitted = fast(name)
    hidden = fitted.packed().prefix(pack_rows(), fitted.loaded.layer_map.num_layers)
    assert hidden.shape[0] == len(rows.ids)
    assert not hidden.requires_grad


def test_a_prefix_is_one_row_for_each_token(fast, pack_rows):
    inputs = pack_rows()
    assert fast("bert").packed().prefix(inputs, 2).shape == (inputs.packing.num_tokens, 32)


@pytest.mark.parametrize("name", PACKED)
def test_the_model_computes_as_ever_after_it(name, fast, rows, plain, pack_rows):
    fitted = fast(name)
    with fitted.packed().scores(pack_rows()):
        pass
    padded = rows.padded(fitted.model.config.pad_token_id)
    with torch.no_grad():
        logits = fitted.model(**padded).logits
    torch.testing.assert_close(logits, plain(name).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_one_row_of_one_token_runs(name, fast, rows):
    fitted = fast(name)
    packing = pack(torch.tensor([1]).numpy(), torch.device("cpu"))
    ids = torch.cat([rows.ids[1], torch.zeros(packing.num_tokens - 1, dtype=torch.int64)])
    inputs = PackedInputs(input_ids=ids, token_type_ids=None, packing=packing)
    expected = fitted.model(input_ids=rows.ids[1][None]).logits
    with fitted.packed().scores(inputs) as scores:
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
def test_dropout_has_the_mean_and_spread_of_torchs(name, load, rows, pack_rows):
    loaded = load(name, "classifier", dropout=0.2)
    model, inputs = loaded.model, rows.padded(loaded.model.config.pad_token_id)
    capabilities = find_capabilities(model, loaded.layer_map)
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        plain = torch.stack([model(**inputs).logits for _ in range(NUM_DRAWS)])
    stream = DropoutStream(3)
    use_stream(model, stream)
    view, found = capabilities.packed_model(model, loaded.layer_map, stream=stream), []
    for step in range(NUM_DRAWS):
        stream.begin(step)
        with torch.no_grad(), view.scores(pack_rows()) as scores:
            found.append(scores)
    packed = torch.stack(found)
    assert plain.std(0).min() > 1e-3
    error = ((plain.var(0) + packed.var(0)) / NUM_DRAWS).sqrt()
    assert ((packed.mean(0) - plain.mean(0)) / error).abs().max() <= 4.5
    # The logarithm of a ratio of two variances of n draws has a standard deviation of 2 / sqrt(n).
    ratio = (packed.var(0) / plain.var(0)).log().abs()
    assert ratio.max() <= 4.5 * 2 / NUM_DRAWS**0.5


def test_a_head_that_reads_all_tokens_gets_them_padded(load, rows, pack_rows):
    loaded = load("modernbert", "classifier", dropout=0.0, classifier_pooling="mean")
    reference = load("modernbert", "classifier", dropout=0.0, classifier_pooling="mean").model
    capabilities = find_capabilities(loaded.model, loaded.layer_map)
    assert capabilities.packed.reads == "all"
    assert capabilities.deepest_prefix == loaded.layer_map.num_layers - 1
    view, inputs = capabilities.packed_model(loaded.model, loaded.layer_map), pack_rows()
    with view.scores(inputs) as scores:
        torch.nn.functional.cross_entropy(scores, rows.labels).backward()
    expected = reference(**rows.padded(0)).logits
    torch.nn.functional.cross_entropy(expected, rows.labels).backward()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in reference.named_parameters():
        found = view.model.get_parameter(name).grad
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    with view.scores(inputs, view.prefix(inputs, 2), 2) as scores:
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
