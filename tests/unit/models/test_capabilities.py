"""What each architecture allows, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    PreTrainedModel,
)

from automl_ft.models.capabilities import find_capabilities
from automl_ft.models.layer_map import LayerMap, map_layers
from automl_ft.models.packed import IMPLEMENTATION
from automl_ft.models.packed_model import PackedInputs
from automl_ft.models.packing import RowGroup, pack
from automl_ft.models.padded_model import PaddedInputs

PACKED = {
    "bert": "first", "distilbert": "first", "roberta": "first", "xlm-roberta": "first",
    "albert": "first", "electra": "first", "gpt2": "last", "llama": "last", "opt": "last",
    "modernbert": "first",
}  # fmt: skip
WINDOW = 8
"""Tokens of the windows below: ModernBERT's reaches half as far to either side."""
LONG_ROWS = (30, 1, 11, 4)
"""Tokens of rows of which two are longer than every window."""
SMALL = {
    "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3,
    "intermediate_size": 40, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3, "num_labels": 3,
}  # fmt: skip
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW}
WINDOWED = {
    "modernbert": {
        **SMALL, "global_attn_every_n_layers": 2, "local_attention": WINDOW, "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "mistral": DECODER,
    "gemma3_text": DECODER,
    "qwen2": {**DECODER, "use_sliding_window": True, "max_window_layers": 1},
}  # fmt: skip
READ_BLOCK = {"bert", "distilbert", "roberta", "xlm-roberta", "electra"}


def test_find_capabilities_packs_what_allows_it(load, architecture: str):
    loaded = load(architecture, "classifier")
    found = find_capabilities(loaded.model, loaded.layer_map)
    assert (found.packed is not None) == (architecture in PACKED)
    assert found.has_read_block == (architecture in READ_BLOCK)
    assert found.padded.reads == PACKED.get(architecture, found.padded.reads)
    assert found.deepest_prefix == loaded.layer_map.num_layers


def test_scores_that_packed_attention_does_not_compute_are_left_to_the_padded_path():
    config = Gemma2Config(
        vocab_size=100, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, intermediate_size=40, head_dim=8, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    model = Gemma2ForSequenceClassification(config)
    found = find_capabilities(model, map_layers(model, {"score.weight"}))
    assert found.packed is None
    assert "does not run on packed rows" in found.notes[0]


def test_a_head_that_is_not_understood_is_said_once(load, architecture: str):
    loaded = load(architecture)
    sentence = f"Heads of `{type(loaded.model).__name__}` are trained one by one."
    assert sentence not in find_capabilities(loaded.model, loaded.layer_map).notes
    linear = [m for m in loaded.model.modules() if isinstance(m, nn.Linear)]
    last = next(m for m in reversed(linear) if m.out_features == loaded.model.config.num_labels)
    last.register_forward_hook(lambda *call: torch.sin(3 * call[2]))
    assert sentence in find_capabilities(loaded.model, loaded.layer_map).notes


@pytest.mark.parametrize("reads", ["first", "all"])
def test_a_last_block_in_full_is_told_where_the_head_reads_one_position(reads: str, load) -> None:
    loaded = load({"first": "modernbert", "all": "mpnet"}[reads])
    model = loaded.model
    if reads == "all":
        model.classifier.register_forward_pre_hook(lambda _, args: (mean_of_tokens(args[0]),))
    found = find_capabilities(model, loaded.layer_map)
    assert found.padded.reads == reads
    assert not found.has_read_block
    told = any("is computed for all tokens" in note for note in found.notes)
    assert told == (reads == "first")


def mean_of_tokens(states: torch.Tensor) -> torch.Tensor:
    return states.mean(1, keepdim=True).expand_as(states)


def test_a_row_of_one_token_and_one_of_equal_tokens_are_tried(load) -> None:
    loaded = load("bert")
    seen: list[list[int]] = []

    def keep(_: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
            seen.append(ids[mask.bool()].tolist())

    handle = loaded.model.register_forward_pre_hook(keep, with_kwargs=True)
    find_capabilities(loaded.model, loaded.layer_map)
    handle.remove()
    assert any(len(row) == 1 for row in seen)
    assert any(len(row) > 1 and len(set(row)) == 1 for row in seen)


@pytest.fixture(scope="module")
def windowed() -> Callable[..., tuple[PreTrainedModel, LayerMap]]:
    """Return a tiny model whose attention has a window, and its parts."""

    def build(name: str, **changes: object) -> tuple[PreTrainedModel, LayerMap]:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            config = AutoConfig.for_model(name, **{**WINDOWED[name], **changes})
            model = AutoModelForSequenceClassification.from_config(config)
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape)
        heads = {n for n, _ in model.named_parameters() if n.startswith(("score", "class", "head"))}
        return model.eval(), map_layers(model, heads)

    return build


def long_rows() -> tuple[PackedInputs, PaddedInputs]:
    """Return the same rows packed and padded."""
    packing = pack(np.asarray(LONG_ROWS), torch.device("cpu"))
    draws = torch.Generator().manual_seed(3)
    rows = [torch.randint(4, 100, (length,), generator=draws) for length in LONG_ROWS]
    filler = torch.zeros(packing.num_tokens - sum(LONG_ROWS), dtype=torch.int64)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = (torch.arange(max(LONG_ROWS)) < torch.tensor(LONG_ROWS)[:, None]).long()
    return (
        PackedInputs(input_ids=torch.cat([*rows, filler]), token_type_ids=None, packing=packing),
        PaddedInputs(arguments={"input_ids": ids, "attention_mask": mask}),
    )


def gradients(model: PreTrainedModel, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    scores.square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", WINDOWED)
def test_rows_longer_than_the_window_train_as_on_the_plain_model(windowed, name: str) -> None:
    model, layer_map = windowed(name)
    packed, padded = long_rows()
    plain = model(**padded.arguments).logits
    wanted = gradients(model, plain)
    found = find_capabilities(model, layer_map)
    for view, inputs in (
        (found.packed_model(model, layer_map), packed),
        (found.padded_model(model, layer_map), padded),
    ):
        with view.scores(inputs) as scores:
            torch.testing.assert_close(scores, plain, atol=1e-5, rtol=1e-5)
            for key, value in gradients(model, scores).items():
                torch.testing.assert_close(value, wanted[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", WINDOWED)
def test_stored_activations_of_rows_longer_than_the_window_give_the_plain_scores(
    windowed, name: str
) -> None:
    model, layer_map = windowed(name)
    packed, padded = long_rows()
    plain = model(**padded.arguments).logits
    found = find_capabilities(model, layer_map)
    assert found.deepest_prefix == layer_map.num_layers
    for num_blocks in range(1, layer_map.num_layers + 1):
        for view, inputs in (
            (found.packed_model(model, layer_map), packed),
            (found.padded_model(model, layer_map), padded),
        ):
            hidden = view.prefix(inputs, num_blocks)
            with view.scores(inputs, hidden, num_blocks) as scores:
                torch.testing.assert_close(scores, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("change", [None, 1, -1], ids=["no_window", "one_more", "one_less"])
def test_a_wrong_window_is_found_out(
    windowed, monkeypatch: pytest.MonkeyPatch, name: str, change: int | None
) -> None:
    model, layer_map = windowed(name)
    right = RowGroup.bias

    def wrong(self: RowGroup, *, window: int | None, **kind: Any) -> torch.Tensor:
        changed = None if window is None or change is None else window + change
        return right(self, window=changed, **kind)

    monkeypatch.setattr(RowGroup, "bias", wrong)
    found = find_capabilities(model, layer_map)
    assert found.packed is None
    assert "does not run on packed rows" in found.notes[0]
    assert found.deepest_prefix == layer_map.num_layers


def test_a_window_that_no_row_of_the_study_exceeds_is_not_tried(windowed) -> None:
    model, layer_map = windowed("mistral")
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    find_capabilities(model, layer_map, longest=WINDOW)
    assert max(lengths) < WINDOW
    find_capabilities(model, layer_map, longest=40)
    assert max(lengths) == 2 * WINDOW


def test_no_row_is_tried_that_is_longer_than_those_of_the_study(windowed) -> None:
    model, layer_map = windowed("mistral")
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    find_capabilities(model, layer_map, longest=WINDOW + 1)
    assert max(lengths) == WINDOW + 1


def test_a_model_that_fails_on_long_rows_keeps_to_the_plain_path(windowed) -> None:
    model, layer_map = windowed("mistral")

    def refuse(_: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > WINDOW:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = find_capabilities(model, layer_map)
    assert found.packed is None
    assert found.deepest_prefix == -1


def tiny(model_type: str, **config: object):
    """A model of another architecture than the tests' own, in eval mode, with its layer map."""
    small = {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 40, "num_labels": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **{**small, **config})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model, map_layers(model)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("fnet", {}), ("convbert", {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3})],
)
def test_states_that_depend_on_the_padding_beside_them_are_not_kept(model_type, config):
    model, layer_map = tiny(model_type, **config)
    found = find_capabilities(model, layer_map)
    assert found.deepest_prefix == -1
    assert any("not kept" in note for note in found.notes)


def test_a_model_that_cannot_be_looked_at_runs_plainly():
    model, layer_map = tiny("canine", max_position_embeddings=64, num_hidden_layers=1)
    found = find_capabilities(model, layer_map)
    assert found.packed is None
    assert found.deepest_prefix == -1
    assert not found.can_stack
    (note,) = found.notes
    assert "allows none of the engine's shortcuts" in note
    ids = torch.arange(1, 21).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs = PaddedInputs(arguments={"input_ids": ids, "attention_mask": mask})
    with torch.no_grad(), found.padded_model(model, layer_map).scores(inputs) as scores:
        assert torch.equal(scores, model(input_ids=ids, attention_mask=mask).logits)


class Embeddings(TorchDispatchMode):
    """Stands for a device: remembers whether look-ups were in range. Raising would be refusing."""

    def __init__(self) -> None:
        super().__init__()
        self.in_range: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default and args[1].device.type != "meta":
            self.in_range.append(0 <= int(args[1].min()) <= int(args[1].max()) < len(args[0]))
        return func(*args, **(kwargs or {}))


def test_positions_beyond_the_table_are_refused_before_the_device_sees_them(load) -> None:
    """As of a decoder whose padding is the last of 50,000 tokens: positions cannot begin there."""
    loaded = load("roberta")
    config = loaded.model.config
    config.pad_token_id = config.vocab_size - 1
    assert config.pad_token_id >= config.max_position_embeddings
    with Embeddings() as device:
        found = find_capabilities(loaded.model, loaded.layer_map)
    assert device.in_range
    assert all(device.in_range)
    assert found.packed is None


@pytest.mark.parametrize("position", [1, 2, 5])
def test_a_lack_of_memory_says_nothing_of_a_model(load, position):
    loaded = load("bert")
    runs = 0

    def fail(*args: object) -> None:
        nonlocal runs
        runs += 1
        if runs == position:
            raise MemoryError("on purpose")

    handle = loaded.model.bert.embeddings.register_forward_hook(fail)
    with pytest.raises(MemoryError, match="on purpose"):
        find_capabilities(
            loaded.model, loaded.layer_map, is_fatal=lambda error: isinstance(error, MemoryError)
        )
    handle.remove()


def test_rows_that_are_tried_hold_the_tokens_that_a_config_names():
    model, layer_map = tiny("esm", vocab_size=120, mask_token_id=7, token_dropout=True)
    assert find_capabilities(model, layer_map).packed is None


def test_padded_rows_off_the_cpu_get_masks_that_wait_for_nothing(load):
    loaded = load("bert")
    model, layer_map = loaded.model, loaded.layer_map
    model.set_attn_implementation("sdpa")
    found = find_capabilities(model, layer_map)
    model.set_attn_implementation("sdpa")
    found.padded_model(model, layer_map)
    assert model.config._attn_implementation != IMPLEMENTATION
    found.padded_model(model.to("meta"), layer_map)
    assert model.config._attn_implementation == IMPLEMENTATION
