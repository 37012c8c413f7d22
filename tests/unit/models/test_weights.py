"""Models that share the tensors of one reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from automl_ft.config.study import ModelConfig
from automl_ft.errors import ModelError
from automl_ft.models.freezing import FreezingPlan
from automl_ft.models.load import LoadedModel, load_model, read_weights, resolve
from automl_ft.models.seeding import seeded_init
from automl_ft.models.weights import PretrainedWeights, map_weights

LABELS = ("negative", "neutral", "positive")


@pytest.fixture
def share(
    resolved: Callable[..., tuple[object, ModelConfig]],
) -> Callable[..., tuple[LoadedModel, PretrainedWeights]]:
    """Load a tiny checkpoint from weights that were read before."""

    def load_sharing(architecture: str, kind: str = "base", *, seed: int = 0, **changes: object):
        checkpoint, config = resolved(architecture, kind, **changes)
        weights = read_weights(checkpoint, config)
        loaded = load_model(
            checkpoint, config, labels=LABELS, dropout=0.3, seed=seed, weights=weights
        )
        return loaded, weights

    return load_sharing


def addresses(model: torch.nn.Module) -> dict[str, int]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.untyped_storage().data_ptr() for name, tensor in named}


@pytest.mark.parametrize("kind", ["base", "classifier"])
def test_the_model_is_the_one_that_transformers_loads(architecture, kind, share, resolved):
    shared, _ = share(architecture, kind, seed=4)
    checkpoint, _ = resolved(architecture, kind)
    with seeded_init(4):
        theirs = AutoModelForSequenceClassification.from_pretrained(
            checkpoint.folder,
            config=shared.model.config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    assert type(shared.model) is type(theirs)
    assert shared.model.training is theirs.training is False
    assert shared.model.config.name_or_path == str(theirs.config.name_or_path)
    ours, wanted = shared.model.state_dict(), theirs.state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    kinds = [[type(module) for module in found.modules()] for found in (shared.model, theirs)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("kind", ["base", "classifier"])
def test_sharing_changes_nothing_of_the_model(architecture, kind, share, load):
    alone = load(architecture, kind, dropout=0.3, seed=4)
    shared, _ = share(architecture, kind, seed=4)
    assert type(shared.model) is type(alone.model)
    assert shared.newly_initialised == alone.newly_initialised
    assert shared.layer_map.parts == alone.layer_map.parts
    assert shared.model.config.to_dict() == alone.model.config.to_dict()
    assert shared.model.config.name_or_path == alone.model.config.name_or_path
    assert shared.model.training is alone.model.training is False
    ours, wanted = shared.model.state_dict(), alone.model.state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    kinds = [[type(module) for module in found.model.modules()] for found in (shared, alone)]
    assert kinds[0] == kinds[1]


def test_pretrained_parameters_are_shared_and_new_ones_are_not(architecture, share):
    loaded, weights = share(architecture)
    at = addresses(loaded.model)
    names = {name for name, _ in loaded.model.named_parameters()}
    assert loaded.newly_initialised
    assert not {at[name] for name in loaded.newly_initialised} & weights.addresses
    assert {at[name] for name in names - loaded.newly_initialised} <= weights.addresses


def test_buffers_are_never_shared(architecture, share):
    loaded, weights = share(architecture)
    assert not {buffer.untyped_storage().data_ptr() for buffer in loaded.model.buffers()} & (
        weights.addresses
    )


def test_what_is_made_its_own_can_change_and_the_next_model_does_not_see_it(
    architecture, share, build
):
    loaded, weights = share(architecture)
    plan = FreezingPlan(layer_map=loaded.layer_map, strategy="bottom_layers", frozen_layers=1)
    if loaded.layer_map.num_layers == 1:
        plan = FreezingPlan(layer_map=loaded.layer_map, strategy="head_only")
    trained = plan.ever_trainable()
    weights.own_parameters(loaded.model, trained)
    named = dict(loaded.model.named_parameters())
    at = addresses(loaded.model)
    assert trained
    assert trained < named.keys()
    assert not {at[name] for name in trained} & weights.addresses
    frozen = named.keys() - trained - loaded.newly_initialised
    assert {at[name] for name in frozen} <= weights.addresses
    with torch.no_grad():
        for name in trained:
            named[name].add_(1.0)
    stored = load_file(build(architecture) / "model.safetensors")
    assert all(torch.equal(weights.tensors[name], value) for name, value in stored.items())


def test_half_precision_weights_are_converted_and_so_not_shared(load, tmp_path):
    load("bert").model.to(torch.bfloat16).save_pretrained(tmp_path)
    config = ModelConfig(checkpoint=str(tmp_path))
    weights = read_weights(resolve(config), config)
    loaded = load_model(
        resolve(config), config, labels=LABELS, dropout=None, seed=0, weights=weights
    )
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not set(addresses(loaded.model).values()) & weights.addresses


def test_all_shards_are_mapped(load, tmp_path):
    model = load("bert").model
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    config = ModelConfig(checkpoint=str(tmp_path))
    files = resolve(config).weight_files
    assert len(files) > 1
    assert map_weights(files).tensors.keys() == model.state_dict().keys()


def test_trusted_code_is_loaded_from_weights_too(build, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = tmp_path / "own_model"
    folder.mkdir()
    for file in build("bert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "shared.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class SharedConfig(BertConfig):\n    model_type = 'shared_kind'\n"
        "class Shared(BertForSequenceClassification):\n    config_class = SharedConfig\n"
    )
    plain = json.loads((folder / "config.json").read_text())
    classes = {
        "AutoConfig": "shared.SharedConfig",
        "AutoModelForSequenceClassification": "shared.Shared",
    }
    plain |= {"model_type": "shared_kind", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(plain))
    config = ModelConfig(checkpoint=str(folder), trust_remote_code=True)
    weights = read_weights(resolve(config), config)
    for seed in (0, 1):
        loaded = load_model(
            resolve(config), config, labels=LABELS, dropout=None, seed=seed, weights=weights
        )
        assert type(loaded.model).__name__ == "Shared"
        assert len(set(addresses(loaded.model).values()) & weights.addresses) > 10


def test_torn_weights_are_refused(build, tmp_path):
    for file in build("bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    config = ModelConfig(checkpoint=str(tmp_path))
    with pytest.raises(ModelError, match=r"weights of the model .* cannot be read"):
        read_weights(resolve(config), config)


def test_random_states_outside_stay_as_they_were(share):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    share("bert", seed=8)
    assert torch.equal(torch.rand(2), wanted)


def test_files_are_read_again_only_where_somebody_wrote_to_them(build, tmp_path: Path):
    for file in build("bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = ModelConfig(checkpoint=str(tmp_path))
    resolved, file = resolve(config), tmp_path / "model.safetensors"
    known = read_weights(resolved, config)
    assert read_weights(resolved, config, known) is known
    save_file(load_file(file), tmp_path / "other", metadata={"format": "pt"})
    os.replace(tmp_path / "other", file)
    again = read_weights(resolved, config, known)
    assert again is not known
    assert again.tensors.keys() == known.tensors.keys()
