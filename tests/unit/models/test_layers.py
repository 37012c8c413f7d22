"""Depths, what decays, and re-initialised top blocks."""

from __future__ import annotations

import pytest
import torch

from automl_ft.errors import ModelError
from automl_ft.models.layers import decay_exempt, layer_depths, reinit_top_blocks


def changed_parameters(loaded, *, num_layers: int, seed: int = 3) -> set[str]:
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    reinit_top_blocks(loaded.model, loaded.layer_map, num_layers=num_layers, seed=seed)
    after = dict(loaded.model.named_parameters())
    return {name for name, old in before.items() if not torch.equal(old, after[name])}


POOLERS = {
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias"},
    "albert": {"albert.pooler.weight", "albert.pooler.bias"},
    "opt": {"model.decoder.project_out.weight"},
}


def test_depth_grows_from_the_head_to_the_embeddings(architecture, load, expected_parts):
    loaded = load(architecture)
    embeddings, *blocks, after, head = expected_parts(architecture, loaded)
    wanted = dict.fromkeys(after | head, 0)
    for depth, block in enumerate(reversed(blocks), start=1):
        wanted |= dict.fromkeys(block, depth)
    wanted |= dict.fromkeys(embeddings, len(blocks) + 1)
    assert layer_depths(loaded.layer_map) == wanted


def test_reinit_changes_exactly_the_top_blocks_and_the_pooler(architecture, load, expected_parts):
    loaded = load(architecture)
    blocks = expected_parts(architecture, loaded)[1:-2]
    pooler = POOLERS.get(architecture, set())
    num_layers = min(2, len(blocks))
    wanted = frozenset().union(*blocks[-num_layers:]) | pooler
    assert changed_parameters(loaded, num_layers=num_layers) == wanted


def test_reinit_of_nothing_changes_nothing(load):
    assert changed_parameters(load("bert"), num_layers=0) == set()


def test_reinitialised_weights_are_those_of_a_fresh_model(load):
    loaded = load("bert")
    reinit_top_blocks(loaded.model, loaded.layer_map, num_layers=1, seed=3)
    top = loaded.model.bert.encoder.layer[2]
    assert torch.equal(top.output.LayerNorm.weight, torch.ones(32))
    assert torch.equal(top.output.dense.bias, torch.zeros(32))
    assert top.output.dense.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_reinit_depends_on_the_seed_only(load):
    def weights(seed: int) -> torch.Tensor:
        loaded = load("gpt2")
        reinit_top_blocks(loaded.model, loaded.layer_map, num_layers=1, seed=seed)
        return loaded.model.transformer.h[2].attn.c_attn.weight.detach()

    first = weights(5)
    torch.rand(3)
    assert torch.equal(first, weights(5))
    assert not torch.equal(first, weights(6))


def test_reinit_leaves_the_random_state_outside_alone(load):
    loaded = load("bert")
    state = torch.get_rng_state()
    reinit_top_blocks(loaded.model, loaded.layer_map, num_layers=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_layers", [-1, 4])
def test_more_blocks_than_there_are_cannot_be_reinitialised(load, num_layers):
    loaded = load("bert")
    with pytest.raises(ModelError, match=f"`reinit_layers` is {num_layers}, .* 3 blocks"):
        reinit_top_blocks(loaded.model, loaded.layer_map, num_layers=num_layers, seed=0)


def test_weight_decay_spares_biases_and_norms_only(architecture, load):
    model = load(architecture).model
    exempt = decay_exempt(model)
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert vectors <= exempt
    assert all(name.rpartition(".")[2].endswith("bias") for name in exempt - vectors)
    assert all("weight" in n or n.split(".")[-1] in "qkvor" or "emb" in n for n in
               {name for name, _ in model.named_parameters()} - exempt)  # fmt: skip


def test_xlnets_biases_are_matrices_and_do_not_decay(load):
    exempt = decay_exempt(load("xlnet").model)
    assert "transformer.layer.0.rel_attn.r_w_bias" in exempt
    assert "transformer.layer.0.rel_attn.q" not in exempt


def test_mpnets_table_of_relative_positions_decays(load):
    exempt = decay_exempt(load("mpnet").model)
    assert "mpnet.encoder.relative_attention_bias.weight" not in exempt
    assert "mpnet.embeddings.LayerNorm.weight" in exempt
