"""Tiny pretrained checkpoints of every supported architecture, built in code and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from automl_ft.config.study import ModelConfig
from automl_ft.models.capabilities import Capabilities, find_capabilities
from automl_ft.models.load import LoadedModel, ResolvedCheckpoint, load_model, resolve
from automl_ft.models.packed_model import PackedInputs, PackedModel
from automl_ft.models.packing import pack
from automl_ft.models.padded_model import PaddedModel

LABELS = ("negative", "neutral", "positive")
VOCAB = 100
TOLERANCE = 1e-5
"""How far fast gradients may be from the reference's, relative: sums of fp32 numbers in another
order, over three blocks forth and back, differ by ten to a hundred roundings of 6e-8."""

SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
BERT = {**SMALL, "intermediate_size": 40, "max_position_embeddings": 40}
DECODER_TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}
CONFIGS: dict[str, dict[str, object]] = {
    "bert": BERT,
    "distilbert": {
        "vocab_size": VOCAB, "dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 40,
        "max_position_embeddings": 40,
    },
    "roberta": {**BERT, "pad_token_id": 0},
    "xlm-roberta": {**BERT, "pad_token_id": 0},
    "albert": {**BERT, "embedding_size": 16},
    "electra": {**BERT, "embedding_size": 16},
    "deberta-v2": {
        **BERT, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "pos_att_type": "p2c|c2p", "position_biased_input": False, "conv_kernel_size": 3,
    },
    "xlnet": {
        "vocab_size": VOCAB, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 40,
        "pad_token_id": 0,
    },
    "gpt2": {
        "vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40,
        **DECODER_TOKENS,
    },
    "llama": {**BERT, "num_key_value_heads": 2, **DECODER_TOKENS},
    "opt": {
        **SMALL, "ffn_dim": 40, "max_position_embeddings": 40, "word_embed_proj_dim": 16,
        **DECODER_TOKENS,
    },
    "modernbert": {
        **BERT, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2,
        "sep_token_id": 3, "global_attn_every_n_layers": 2, "local_attention": 4,
    },
    "mpnet": {**BERT, "pad_token_id": 1},
}  # fmt: skip
ARCHITECTURES = tuple(CONFIGS)
DECODERS = ("gpt2", "llama", "opt")


# Written down from the architectures' own code: prefixes of embeddings, of block i, of what
# follows the blocks, of the head.
PARTS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "bert": (["bert.embeddings."], ["bert.encoder.layer.{}."], ["bert.pooler."], ["classifier."]),
    "distilbert": (
        ["distilbert.embeddings."],
        ["distilbert.transformer.layer.{}."],
        [],
        ["pre_classifier.", "classifier."],
    ),
    "roberta": (["roberta.embeddings."], ["roberta.encoder.layer.{}."], [], ["classifier."]),
    "xlm-roberta": (["roberta.embeddings."], ["roberta.encoder.layer.{}."], [], ["classifier."]),
    "albert": (
        ["albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in."],
        ["albert.encoder.albert_layer_groups.{}."],
        ["albert.pooler."],
        ["classifier."],
    ),
    "electra": (
        ["electra.embeddings.", "electra.embeddings_project."],
        ["electra.encoder.layer.{}."],
        [],
        ["classifier."],
    ),
    "deberta-v2": (
        ["deberta.embeddings.", "deberta.encoder.rel_embeddings.", "deberta.encoder.LayerNorm."],
        ["deberta.encoder.layer.{}."],
        [],
        ["pooler.", "classifier."],
    ),
    "xlnet": (
        ["transformer.word_embedding.", "transformer.mask_emb"],
        ["transformer.layer.{}."],
        [],
        ["sequence_summary.", "logits_proj."],
    ),
    "gpt2": (
        ["transformer.wte.", "transformer.wpe."],
        ["transformer.h.{}."],
        ["transformer.ln_f."],
        ["score."],
    ),
    "llama": (["model.embed_tokens."], ["model.layers.{}."], ["model.norm."], ["score."]),
    "opt": (
        [f"model.decoder.{name}." for name in ("embed_tokens", "embed_positions", "project_in")],
        ["model.decoder.layers.{}."],
        ["model.decoder.final_layer_norm.", "model.decoder.project_out."],
        ["score."],
    ),
    "modernbert": (
        ["model.embeddings."],
        ["model.layers.{}."],
        ["model.final_norm."],
        ["head.", "classifier."],
    ),
    "mpnet": (
        ["mpnet.embeddings.", "mpnet.encoder.relative_attention_bias."],
        ["mpnet.encoder.layer.{}."],
        [],
        ["classifier."],
    ),
}  # fmt: skip
IN_FIRST_BLOCK = {"deberta-v2": ["deberta.encoder.conv."]}
"""What runs right after the first block only."""
NUM_LAYERS = {name: 1 if name == "albert" else 3 for name in PARTS}


def tiny_config(architecture: str, **changes: object) -> PretrainedConfig:
    return AutoConfig.for_model(architecture, **{**CONFIGS[architecture], **changes})


def tiny_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    if architecture == "mpnet":  # its padding id is 1 whatever the config says
        special = ["<unk>", "<pad>", "<s>", "</s>"]
    words = [*special, *(f"w{i}" for i in range(VOCAB - len(special)))]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=None if architecture in DECODERS else "<pad>",
        padding_side="left" if architecture in DECODERS else "right",
        model_input_names=["input_ids", "attention_mask"],
    )


def _perturb(model: torch.nn.Module) -> None:
    # Fresh norms are all ones and biases all zeros: what re-initialisation does would not show.
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.1 * noise


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # On matrices this small a second thread only waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny checkpoint: of the base model, a language model (`lm`) or a `classifier`."""
    kinds = {
        "base": AutoModel,
        "lm": AutoModelForCausalLM,
        "classifier": AutoModelForSequenceClassification,
    }
    built: dict[object, Path] = {}

    def build_checkpoint(architecture: str, kind: str = "base", **changes: object) -> Path:
        key = (architecture, kind, repr(sorted(changes.items())))
        if key not in built:
            folder = tmp_path_factory.mktemp(f"{architecture}-{kind}")
            model = kinds[kind].from_config(tiny_config(architecture, **changes))
            _perturb(model)
            model.save_pretrained(folder)
            tiny_tokenizer(architecture).save_pretrained(folder)
            built[key] = folder
        return built[key]

    return build_checkpoint


@pytest.fixture
def resolved(
    build: Callable[..., Path],
) -> Callable[..., tuple[ResolvedCheckpoint, ModelConfig]]:
    def resolve_tiny(architecture: str, kind: str = "base", **changes: object):
        config = ModelConfig(checkpoint=str(build(architecture, kind, **changes)))
        return resolve(config), config

    return resolve_tiny


@pytest.fixture
def load(resolved: Callable[..., tuple[ResolvedCheckpoint, ModelConfig]]):
    """Load a tiny checkpoint as the program does."""

    def load_tiny(
        architecture: str,
        kind: str = "base",
        *,
        dropout: float | None = None,
        seed: int = 0,
        labels: tuple[str, ...] = LABELS,
        **changes: object,
    ) -> LoadedModel:
        checkpoint, config = resolved(architecture, kind, **changes)
        return load_model(checkpoint, config, labels=labels, dropout=dropout, seed=seed)

    return load_tiny


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows of one length, without padding, with labels."""
    ids = torch.arange(10, 24).view(2, 7)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([0, 2]),
    }


@pytest.fixture
def expected_parts() -> Callable[[str, LoadedModel], list[frozenset[str]]]:
    """Embeddings, blocks, after and head by the table above, not by the layer map."""

    def parts(architecture: str, loaded: LoadedModel) -> list[frozenset[str]]:
        names = [name for name, _ in loaded.model.named_parameters()]
        embeddings, block, after, head = PARTS[architecture]
        blocks = [[b.format(i) for b in block] for i in range(NUM_LAYERS[architecture])]
        blocks[0] += IN_FIRST_BLOCK.get(architecture, [])
        found = [
            frozenset(name for name in names if name.startswith(tuple(prefixes)))
            for prefixes in (embeddings, *blocks, after, head)
        ]
        assert sum(map(len, found)) == len(names), "the table of this test misses a parameter"
        return found

    return parts


ROW_LENGTHS = (9, 1, 20, 4, 13, 20)
"""Tokens of the rows of `rows`: one of a single token, two that share the longest."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of different lengths, without padding and without padding tokens."""

    ids: list[torch.Tensor]
    types: list[torch.Tensor]
    labels: torch.Tensor

    def padded(
        self, padding: int, *, side: str = "right", has_types: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return what a model is called with, written out place by place."""
        longest = max(map(len, self.ids))
        shape = len(self.ids), longest
        inputs = {"input_ids": torch.full(shape, padding), "attention_mask": torch.zeros(shape)}
        inputs["attention_mask"] = inputs["attention_mask"].long()
        if has_types:
            inputs["token_type_ids"] = torch.zeros(shape).long()
        for row, ids in enumerate(self.ids):
            begin = 0 if side == "right" else longest - len(ids)
            for place, token in enumerate(ids.tolist()):
                inputs["input_ids"][row, begin + place] = token
                inputs["attention_mask"][row, begin + place] = 1
                if has_types:
                    inputs["token_type_ids"][row, begin + place] = self.types[row][place]
        return inputs


@dataclasses.dataclass(frozen=True)
class Plain:
    """What plain transformers and torch give: the reference."""

    logits: torch.Tensor
    loss: float
    gradients: dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Fast:
    """A model that is to be run with shortcuts, in training mode, without gradients yet."""

    loaded: LoadedModel
    capabilities: Capabilities

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    def packed(self, **options: Any) -> PackedModel:
        return self.capabilities.packed_model(self.model, self.loaded.layer_map, **options)

    def padded(self) -> PaddedModel:
        return self.capabilities.padded_model(self.model, self.loaded.layer_map)


def padding_side(architecture: str) -> str:
    """Return where rows of an architecture are padded: XLNet reads the last position."""
    return "left" if architecture == "xlnet" else "right"


@pytest.fixture(scope="session")
def rows() -> Rows:
    draws = torch.Generator().manual_seed(11)
    ids = [torch.randint(4, VOCAB, (length,), generator=draws) for length in ROW_LENGTHS]
    types = [(torch.arange(length) >= length // 2).long() for length in ROW_LENGTHS]
    return Rows(ids=ids, types=types, labels=torch.tensor([0, 2, 1, 1, 0, 2]))


@pytest.fixture(scope="session")
def load_once(build: Callable[..., Path]) -> Callable[[str], LoadedModel]:
    """Load a tiny classifier without dropout."""

    def load_classifier(architecture: str) -> LoadedModel:
        config = ModelConfig(checkpoint=str(build(architecture, "classifier")))
        return load_model(resolve(config), config, labels=LABELS, dropout=0.0, seed=0)

    return load_classifier


@pytest.fixture(scope="session")
def plain(rows: Rows, load_once: Callable[[str], LoadedModel]) -> Callable[..., Plain]:
    """Return the reference of an architecture: padded, fp32, no shortcut, torch's own loss."""
    known: dict[tuple[str, bool], Plain] = {}

    def compute(architecture: str, *, has_types: bool = False) -> Plain:
        key = (architecture, has_types)
        if key not in known:
            model = load_once(architecture).model.train()
            padding, side = model.config.pad_token_id, padding_side(architecture)
            logits = model(**rows.padded(padding, side=side, has_types=has_types)).logits
            loss = torch.nn.functional.cross_entropy(logits, rows.labels)
            loss.backward()
            gradients = {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()
            }
            known[key] = Plain(logits=logits.detach(), loss=loss.item(), gradients=gradients)
        return known[key]

    return compute


@pytest.fixture(scope="session")
def fast_models() -> dict[str, Fast]:
    """Models that were looked at already; use `fast`."""
    return {}


@pytest.fixture
def fast(
    fast_models: dict[str, Fast], load_once: Callable[[str], LoadedModel]
) -> Callable[[str], Fast]:
    """Return a model and what it allows."""

    def get(architecture: str) -> Fast:
        if architecture not in fast_models:
            loaded = load_once(architecture)
            capabilities = find_capabilities(loaded.model, loaded.layer_map)
            fast_models[architecture] = Fast(loaded=loaded, capabilities=capabilities)
        found = fast_models[architecture]
        found.model.train()
        found.model.requires_grad_(True)
        found.model.zero_grad()
        return found

    return get


@pytest.fixture(scope="session")
def pack_rows(rows: Rows) -> Callable[..., PackedInputs]:
    """Return the rows end to end."""

    def make(*, has_types: bool = False) -> PackedInputs:
        packing = pack(np.asarray(ROW_LENGTHS), torch.device("cpu"))
        filler = torch.zeros(packing.num_tokens - sum(ROW_LENGTHS), dtype=torch.int64)
        types = torch.cat([*rows.types, filler]) if has_types else None
        ids = torch.cat([*rows.ids, filler])
        return PackedInputs(input_ids=ids, token_type_ids=types, packing=packing)

    return make


@pytest.fixture(scope="session")
def assert_same_gradients() -> Callable[..., None]:
    """Compare the gradients of a model with the reference's, parameter by parameter."""

    def compare(model: PreTrainedModel, expected: Plain, names: Iterable[str]) -> None:
        wanted = set(names)
        assert wanted
        largest = max(float(gradient.norm()) for gradient in expected.gradients.values())
        for name, parameter in model.named_parameters():
            if name not in wanted:
                assert parameter.grad is None, f"{name} is frozen"
                continue
            right = expected.gradients[name]
            found = torch.zeros_like(right) if parameter.grad is None else parameter.grad
            # What is zero in theory (a key's bias moves all scores of a row alike) is only rounding
            # in practice, of the size of the sums that cancel.
            scale = max(float(right.norm()), 1e-2 * largest)
            error = float((found - right).norm()) / scale
            assert error <= TOLERANCE, f"{name}: {error:.1e}"

    return compare


@pytest.fixture
def check_step(
    rows: Rows, plain: Callable[..., Plain], assert_same_gradients: Callable[..., None]
) -> Callable[..., None]:
    """Run one step through a view, and compare scores, loss and gradients with the reference."""

    def check(
        view: PackedModel | PaddedModel,
        inputs: Any,
        architecture: str,
        *stored: Any,
        has_types: bool = False,
    ) -> None:
        expected = plain(architecture, has_types=has_types)
        with view.scores(inputs, *stored) as scores:
            loss = torch.nn.functional.cross_entropy(scores, rows.labels)
            loss.backward()
        torch.testing.assert_close(scores, expected.logits, atol=TOLERANCE, rtol=TOLERANCE)
        assert loss.item() == pytest.approx(expected.loss, abs=1e-6)
        trained = [name for name, p in view.model.named_parameters() if p.requires_grad]
        assert_same_gradients(view.model, expected, trained)

    return check


@pytest.fixture(scope="session")
def freeze() -> Callable[[PackedModel | PaddedModel, int], None]:
    """Freeze embeddings and the lowest blocks of a view's model."""

    def freeze_bottom(view: PackedModel | PaddedModel, num_blocks: int) -> None:
        layer_map = view.layer_map
        frozen = set(layer_map.embeddings).union(*layer_map.blocks[:num_blocks])
        for name, parameter in view.model.named_parameters():
            parameter.requires_grad_(name not in frozen)

    return freeze_bottom
