"""Every parameter of every architecture is in the part where a reader of its code would put it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.bert.modeling_bert import BertForSequenceClassification

from automl_ft.errors import ModelError
from automl_ft.models import layer_map as layer_map_module
from automl_ft.models.layer_map import map_layers


def make(model_type: str, **config: object):
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(model_type, **config)
    )


SMALL_BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 16, "max_position_embeddings": 20,
}  # fmt: skip


def test_parts_are_those_of_the_architecture(architecture, load, expected_parts):
    loaded = load(architecture)
    found = [frozenset(part) for part in loaded.layer_map.parts]
    assert found == expected_parts(architecture, loaded)


def test_every_parameter_and_module_is_in_exactly_one_part(architecture, load):
    loaded = load(architecture)
    parameters = sorted(name for part in loaded.layer_map.parts for name in part)
    modules = sorted(name for part in loaded.layer_map.modules for name in part)
    assert parameters == sorted(name for name, _ in loaded.model.named_parameters())
    assert modules == sorted(name for name, _ in loaded.model.named_modules())


def test_block_modules_are_the_blocks_bottom_first(architecture, load):
    layer_map = load(architecture).layer_map
    assert len(layer_map.block_modules) == layer_map.num_layers
    for module, block in zip(layer_map.block_modules, layer_map.blocks, strict=True):
        assert any(name.startswith(f"{module}.") for name in block)


def test_a_causal_language_model_maps_like_its_base(load, expected_parts):
    for architecture in ("gpt2", "llama", "opt"):
        loaded = load(architecture, "lm")
        found = [frozenset(part) for part in loaded.layer_map.parts]
        assert found == expected_parts(architecture, loaded)


def test_mapping_leaves_no_hook_no_gradient_and_the_training_flags(load):
    model = load("bert").model
    model.train()
    model.bert.embeddings.eval()
    before = {name: module.training for name, module in model.named_modules()}
    map_layers(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mapping_draws_no_random_numbers(load):
    model = load("bert").model
    state = torch.get_rng_state()
    map_layers(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_absent_pooler_belongs_to_the_head(load):
    # A BERT masked-language model is saved without pooler.
    model = load("bert").model
    new = {"classifier.weight", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    layer_map = map_layers(model, new)
    assert layer_map.after == ()
    assert set(layer_map.head) == {*new, "classifier.bias"}
    assert {"bert.pooler", "bert.pooler.dense"} <= set(layer_map.modules[-1])


def test_newly_initialised_embeddings_belong_to_the_head_and_are_told(load):
    model = load("bert").model
    name = "bert.embeddings.token_type_embeddings.weight"
    layer_map = map_layers(model, {name})
    assert name in layer_map.head
    assert name not in layer_map.embeddings
    assert not layer_map.has_pretrained_embeddings
    assert map_layers(model).has_pretrained_embeddings


def test_parameters_that_the_architecture_never_trains_are_constants():
    model = make("bert", **SMALL_BERT)
    model.bert.embeddings.position_embeddings.weight.requires_grad_(False)
    layer_map = map_layers(model)
    assert layer_map.constants == {"bert.embeddings.position_embeddings.weight"}


def test_stacks_of_one_class_in_several_lists_are_one_stack_in_running_order():
    # Funnel nests its blocks in two levels of lists.
    model = make(
        "funnel", vocab_size=50, d_model=16, n_head=2, d_head=8, d_inner=16, block_sizes=[2, 1],
        num_decoder_layers=1,
    )  # fmt: skip
    assert map_layers(model).block_modules == (
        "funnel.encoder.blocks.0.0",
        "funnel.encoder.blocks.0.1",
        "funnel.encoder.blocks.1.0",
    )


def test_what_runs_between_two_blocks_belongs_to_the_lower_one():
    # CANINE, which has no vocabulary, goes from characters to molecules after its first block.
    model = make(
        "canine", hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16,
        max_position_embeddings=64, num_hash_buckets=64,
    )  # fmt: skip
    layer_map = map_layers(model)
    assert layer_map.block_modules == (
        "canine.initial_char_encoder.layer.0",
        "canine.encoder.layer.0",
        "canine.encoder.layer.1",
        "canine.final_char_encoder.layer.0",
    )
    assert "canine.chars_to_molecules.conv.weight" in layer_map.blocks[0]
    assert "canine.projection.conv.weight" in layer_map.blocks[2]


def test_an_encoder_with_decoder_is_refused():
    model = make(
        "bart", vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"`BartForSequenceClassification` \(model_type `bart`\)"):
        map_layers(model)


def test_a_model_without_a_list_of_blocks_is_refused():
    model = make("bert", **SMALL_BERT)
    model.bert.encoder.layer = nn.Sequential(*model.bert.encoder.layer)
    with pytest.raises(ModelError, match="no `ModuleList` of blocks with parameters"):
        map_layers(model)


def test_a_second_stack_is_refused_with_both_named():
    model = make("bert", **SMALL_BERT)
    model.bert.side = nn.ModuleList([nn.Linear(16, 60) for _ in range(2)])
    with pytest.raises(
        ModelError, match=r"`bert.encoder.layer.0`.* second stack of 2, `bert.side.0`"
    ):
        map_layers(model)


def test_a_model_without_head_is_refused():
    class Headless(BertForSequenceClassification):
        base_model_prefix = "nothing"

    with pytest.raises(ModelError, match=r"no classification head .*`nothing`"):
        map_layers(Headless(BertConfig(**SMALL_BERT)))


def test_a_block_that_never_runs_is_refused():
    model = make("bert", **SMALL_BERT)
    first, encoder = model.bert.encoder.layer[0], model.bert.encoder
    encoder.forward = lambda hidden, *_, **__: BaseModelOutputWithPast(
        last_hidden_state=first(hidden)
    )
    with pytest.raises(ModelError, match=r"`bert.encoder.layer.1` did not run"):
        map_layers(model)


def test_a_model_that_does_not_run_is_refused_with_the_reason(monkeypatch):
    model = make("bert", **SMALL_BERT)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(model.bert.embeddings, "forward", broken)
    with pytest.raises(ModelError, match=r"row of 8 tokens \(no kernel for this device\)"):
        map_layers(model)


def test_blocks_without_pretrained_weights_are_refused_with_their_number(load):
    model = load("bert").model
    missing = {name for name, _ in model.named_parameters() if ".layer.1." in name}
    with pytest.raises(ModelError, match=r"lacks 16 of the 48 parameters .*layer\.1\."):
        map_layers(model, missing)


@pytest.mark.parametrize(
    ("config", "boundaries"),
    [
        ({"num_hidden_groups": 1}, {0, 1}),
        ({"num_hidden_groups": 2}, {0, 1, 2}),
        ({"num_hidden_groups": 2, "inner_group_num": 2}, {0, 1, 2}),
    ],
)
def test_blocks_that_share_weights_end_at_boundaries(config, boundaries):
    small = {**SMALL_BERT, "num_hidden_layers": 4, "embedding_size": 8}
    assert map_layers(make("albert", **{**small, **config})).boundaries == boundaries


def test_between_blocks_that_run_in_turns_there_is_no_boundary():
    assert layer_map_module._boundaries([0, 1, 2]) == {0, 1, 2, 3}
    assert layer_map_module._boundaries([0, 0, 1]) == {0, 1, 2}
    assert layer_map_module._boundaries([0, 1, 0, 1]) == {0, 2}
    assert layer_map_module._boundaries([0, 1, 2, 1, 2, 3]) == {0, 1, 3, 4}


def test_mapping_leaves_what_a_model_changes_in_itself():
    model = make("big_bird", **SMALL_BERT, attention_type="block_sparse", block_size=2)
    attention = model.bert.encoder.layer[0].attention.self
    map_layers(model)
    assert model.bert.attention_type == "block_sparse"
    assert model.bert.encoder.layer[0].attention.self is attention
