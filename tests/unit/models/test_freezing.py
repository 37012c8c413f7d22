"""The exact set of parameters that receive gradient, for every architecture and strategy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import BertModel

from automl_ft.config.study import ModelConfig
from automl_ft.errors import ModelError
from automl_ft.models.freezing import plan_freezing
from automl_ft.models.layer_map import map_layers
from automl_ft.models.load import load_model, resolve

NEVER_USED = {"xlnet": ("transformer.mask_emb", ".r_s_bias", ".seg_embed")}
"""Parameters that a row without segments never touches."""


def plan_of(loaded, freezing: str, **others: float):
    return plan_freezing(loaded.layer_map, {"freezing": freezing, **others})


def gradients(model, plan, stage: int, batch) -> set[str]:
    """Train one step of the way and return who received gradient."""
    plan.apply(model, stage)
    plan.set_train_mode(model, stage)
    model(**batch).loss.backward()
    received = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return received


def used(architecture: str, parts) -> set[str]:
    endings = NEVER_USED.get(architecture, ())
    return {name for part in parts for name in part if not name.endswith(endings or ("/",))}


def test_none_trains_everything(architecture, load, expected_parts, batch):
    loaded = load(architecture)
    parts = expected_parts(architecture, loaded)
    plan = plan_of(loaded, "none")
    assert gradients(loaded.model, plan, 0, batch) == used(architecture, parts)


def test_embeddings_freezes_what_runs_before_the_first_block(
    architecture, load, expected_parts, batch
):
    loaded = load(architecture)
    parts = expected_parts(architecture, loaded)
    plan = plan_of(loaded, "embeddings")
    assert gradients(loaded.model, plan, 0, batch) == used(architecture, parts[1:])


def test_bottom_layers_freezes_embeddings_and_the_lowest_blocks(
    architecture, load, expected_parts, batch
):
    loaded = load(architecture)
    parts = expected_parts(architecture, loaded)
    for k in range(1, loaded.layer_map.num_layers):
        plan = plan_of(loaded, "bottom_layers", frozen_layers=k)
        assert gradients(loaded.model, plan, 0, batch) == used(architecture, parts[1 + k :])


def test_head_only_freezes_the_whole_base(architecture, load, expected_parts, batch):
    loaded = load(architecture)
    head = expected_parts(architecture, loaded)[-1]
    assert gradients(loaded.model, plan_of(loaded, "head_only"), 0, batch) == head


def test_gradual_unfreezing_goes_from_the_head_down_to_the_embeddings(
    architecture, load, expected_parts, batch
):
    loaded = load(architecture)
    parts = expected_parts(architecture, loaded)
    plan = plan_of(loaded, "gradual_unfreezing", unfreezing_pace=0.5)
    received = [gradients(loaded.model, plan, stage, batch) for stage in range(plan.num_stages)]
    wanted = [used(architecture, parts[start:]) for start in range(len(parts) - 2, -1, -1)]
    assert received == wanted
    assert len(received) == loaded.layer_map.num_layers + 2


def test_ever_trainable_is_what_some_stage_trains(architecture, load):
    loaded = load(architecture)
    everything = {name for name, _ in loaded.model.named_parameters()}
    gradual = plan_of(loaded, "gradual_unfreezing", unfreezing_pace=0.5)
    assert gradual.ever_trainable() == everything
    head_only = plan_of(loaded, "head_only")
    assert head_only.ever_trainable() == set(loaded.layer_map.head)


def output_and_logits(model, watched: str, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a module and the logits of one forward pass."""
    seen: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(watched).register_forward_hook(keep)
    logits = model(**batch).logits
    handle.remove()
    return seen[-1].detach(), logits.detach()


def test_a_frozen_prefix_computes_the_same_in_train_mode(architecture, load, batch):
    loaded = load(architecture, dropout=0.5)
    if architecture == "albert":  # its one block is all its layers: only the embeddings can freeze
        plan, watched = plan_of(loaded, "embeddings"), "albert.encoder.embedding_hidden_mapping_in"
    else:
        plan = plan_of(loaded, "bottom_layers", frozen_layers=2)
        watched = loaded.layer_map.block_modules[1]
    plan.apply(loaded.model, 0)
    plan.set_train_mode(loaded.model, 0)
    first, first_logits = output_and_logits(loaded.model, watched, batch)
    second, second_logits = output_and_logits(loaded.model, watched, batch)
    assert torch.equal(first, second)
    assert not torch.equal(first_logits, second_logits), "dropout must act on the trainable part"


def test_a_base_that_is_all_frozen_computes_the_same_in_train_mode(architecture, load, batch):
    loaded = load(architecture, dropout=0.5)
    plan = plan_of(loaded, "head_only")
    plan.set_train_mode(loaded.model, 0)
    base = loaded.model.base_model
    rows = {key: batch[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(base(**rows)[0], base(**rows)[0])
    assert not any(module.training for module in base.modules())


def test_without_freezing_every_module_is_in_train_mode(architecture, load):
    loaded = load(architecture)
    plan_of(loaded, "none").set_train_mode(loaded.model, 0)
    assert all(module.training for module in loaded.model.modules())


def test_unfreezing_puts_a_block_back_into_train_mode(load):
    loaded = load("bert")
    plan = plan_of(loaded, "gradual_unfreezing", unfreezing_pace=1.0)
    layers = loaded.model.bert.encoder.layer
    plan.set_train_mode(loaded.model, 0)
    assert [layer.training for layer in layers] == [False, False, False]
    plan.set_train_mode(loaded.model, 1)
    assert [layer.training for layer in layers] == [False, False, True]
    assert not loaded.model.bert.embeddings.dropout.training


def test_freezing_drops_gradients_of_what_it_freezes(load, batch):
    loaded = load("bert")
    loaded.model(**batch).loss.backward()
    plan_of(loaded, "head_only").apply(loaded.model, 0)
    with_grad = {name for name, p in loaded.model.named_parameters() if p.grad is not None}
    assert with_grad == set(loaded.layer_map.head)


def test_an_absent_pooler_learns_even_with_head_only(load, build, batch, tmp_path):
    folder = build("bert")
    BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    config = ModelConfig(checkpoint=str(tmp_path))
    loaded = load_model(resolve(config), config, labels=("a", "b", "c"), dropout=None, seed=0)
    received = gradients(loaded.model, plan_of(loaded, "head_only"), 0, batch)
    assert received == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize(
    ("progress", "stage"),
    [(0.0, 0), (0.124, 0), (0.125, 1), (0.25, 2), (0.3, 2), (0.374, 2), (0.375, 3), (0.499, 3),
     (0.5, 4), (0.75, 4), (1.0, 4)],
)  # fmt: skip
def test_unfreezing_is_even_until_the_pace_is_reached(load, progress, stage):
    plan = plan_of(load("bert"), "gradual_unfreezing", unfreezing_pace=0.5)
    assert plan.stage(progress) == stage


def test_rounding_does_not_delay_a_stage(load):
    plan = plan_of(load("bert"), "gradual_unfreezing", unfreezing_pace=0.3)
    assert plan.stage(0.1 + 0.2) == plan.stage(0.3) == 4
    assert plan.stage(0.3 * 0.25) == 1


@pytest.mark.parametrize("strategy", ["none", "embeddings", "head_only"])
def test_other_strategies_have_one_stage(load, strategy):
    plan = plan_of(load("bert"), strategy)
    assert plan.num_stages == 1
    assert [plan.stage(progress) for progress in (0.0, 0.5, 1.0)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("freezing", "others", "prefix"),
    [
        ("none", {}, [None]),
        ("embeddings", {}, [0]),
        ("bottom_layers", {"frozen_layers": 2}, [2]),
        ("head_only", {}, [3]),
        ("gradual_unfreezing", {"unfreezing_pace": 0.5}, [3, 2, 1, 0, None]),
        ("head_only", {"reinit_layers": 1}, [2]),
        ("bottom_layers", {"frozen_layers": 2, "reinit_layers": 3}, [0]),
    ],
)
def test_the_frozen_prefix_counts_bottom_blocks(load, freezing, others, prefix):
    plan = plan_of(load("bert"), freezing, **others)
    assert [plan.frozen_prefix(stage) for stage in range(plan.num_stages)] == prefix


def test_there_is_no_frozen_prefix_over_random_embeddings(load):
    layer_map = map_layers(load("bert").model, {"bert.embeddings.token_type_embeddings.weight"})
    assert plan_freezing(layer_map, {"freezing": "head_only"}).frozen_prefix(0) is None


def test_reinitialised_blocks_are_never_frozen(load, expected_parts):
    loaded = load("bert")
    parts = expected_parts("bert", loaded)
    plan = plan_of(loaded, "head_only", reinit_layers=1)
    assert plan.trainable(0) == parts[3] | parts[4] | parts[5]


def test_constants_of_the_architecture_are_never_trained(load):
    model = load("bert").model
    model.bert.embeddings.position_embeddings.weight.requires_grad_(False)
    plan = plan_freezing(map_layers(model), {"freezing": "none"})
    plan.apply(model, 0)
    assert not model.bert.embeddings.position_embeddings.weight.requires_grad


@pytest.mark.parametrize("frozen_layers", [0, 3, 7])
def test_frozen_layers_out_of_range_is_refused_with_the_values(load, frozen_layers):
    message = f"`frozen_layers` is {frozen_layers}, .* of 3 blocks accepts 1 to 2"
    with pytest.raises(ModelError, match=message):
        plan_of(load("bert"), "bottom_layers", frozen_layers=frozen_layers)


def test_bottom_layers_is_refused_where_all_layers_are_shared(load):
    with pytest.raises(ModelError, match="has a single block, so none can be frozen"):
        plan_of(load("albert"), "bottom_layers", frozen_layers=1)


@pytest.mark.parametrize("pace", [0.0, -0.5, 1.5])
def test_a_pace_out_of_range_is_refused(load, pace):
    with pytest.raises(ModelError, match=f"`unfreezing_pace` is {pace:g}"):
        plan_of(load("bert"), "gradual_unfreezing", unfreezing_pace=pace)


@pytest.mark.parametrize("reinit_layers", [-1, 4])
def test_reinit_layers_out_of_range_is_refused(load, reinit_layers):
    with pytest.raises(ModelError, match=f"`reinit_layers` is {reinit_layers}, .* 3 blocks"):
        plan_of(load("bert"), "none", reinit_layers=reinit_layers)


def test_an_unknown_strategy_is_refused_with_a_suggestion(load):
    with pytest.raises(ModelError, match=r"`freezing` is `head-only`.*Did you mean `head_only`"):
        plan_of(load("bert"), "head-only")


def test_a_frozen_prefix_ends_where_blocks_do_not_run_in_turns(load):
    layer_map = dataclasses.replace(load("bert").layer_map, boundaries=frozenset({0, 2, 3}))
    recipes = [({"freezing": "bottom_layers", "frozen_layers": count}, count) for count in (1, 2)]
    found = [plan_freezing(layer_map, recipe).frozen_prefix(0) for recipe, _ in recipes]
    assert found == [0, 2]
