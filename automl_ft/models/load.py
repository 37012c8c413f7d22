"""How a checkpoint's name becomes files, a tokenizer, and a classifier that is ready to train.

Weights are read from safetensors only. Whoever loads a checkpoint again and again reads them once,
with `read_weights`, and has its models share them (see `models.weights`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from automl_ft.config.study import ModelConfig
from automl_ft.errors import ModelError
from automl_ft.files.checksum import sha256_file, sha256_files
from automl_ft.models.bundled import bundled_folder
from automl_ft.models.dropout import apply_dropout
from automl_ft.models.hub import download, first_line
from automl_ft.models.layer_map import LayerMap, map_layers
from automl_ft.models.quiet import quiet
from automl_ft.models.seeding import seeded_init
from automl_ft.models.weights import PretrainedWeights, map_weights, stamps_of

__all__ = [
    "LoadedModel",
    "ResolvedCheckpoint",
    "files_hash",
    "load_model",
    "load_tokenizer",
    "read_weights",
    "resolve",
    "weights_hash",
]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OTHER_FILES = ("*.json", "*.txt", "*.model", "*.py", "*.jinja")
_OTHER_WEIGHTS = (
    "*.bin",
    "*.safetensors",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedCheckpoint:
    """A checkpoint whose files lie in a local folder."""

    checkpoint: str
    """What the user wrote: hub id, folder or bundled name."""
    folder: Path
    """The folder that holds config, tokenizer and weights."""
    revision: str
    """Commit hash on the hub; empty for a folder."""
    model_type: str
    """`model_type` of its config, such as `bert`."""
    weight_files: tuple[Path, ...]
    """Its safetensors files, in the order of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A classifier, ready to be frozen and trained."""

    model: PreTrainedModel
    """The model, in fp32, on the CPU, in eval mode."""
    layer_map: LayerMap
    """Its parts."""
    newly_initialised: frozenset[str]
    """Parameters that the checkpoint does not hold, drawn from the seed."""


def resolve(config: ModelConfig) -> ResolvedCheckpoint:
    """Find a checkpoint's files, downloading them from the hub where they are not here yet.

    Args:
        config: The model as the user asks for it.

    Returns:
        Where its files are.

    Raises:
        ModelError: The checkpoint does not exist, cannot be reached, holds no safetensors weights,
            or is nothing that can be loaded for sequence classification.
    """
    folder = bundled_folder(config.checkpoint) or _local_folder(config)
    revision = ""
    if folder is None:
        folder = download(config)
        revision = folder.name
    model_config = _read_config(folder, config)
    _check_classifier(model_config, config)
    return ResolvedCheckpoint(
        checkpoint=config.checkpoint,
        folder=folder,
        revision=revision,
        model_type=model_config.model_type,
        weight_files=_weight_files(folder, config),
    )


def weights_hash(resolved: ResolvedCheckpoint) -> str:
    """Return what identifies a checkpoint's weights.

    Args:
        resolved: The checkpoint.

    Returns:
        The SHA-256 of its weight file, in hex; where it has several, one over their names and
        contents.
    """
    files = resolved.weight_files
    return sha256_file(files[0]) if len(files) == 1 else sha256_files(files)


def files_hash(resolved: ResolvedCheckpoint) -> str:
    """Return what identifies a checkpoint's other files: config, tokenizer, code.

    Args:
        resolved: The checkpoint.

    Returns:
        A SHA-256 over their names and contents, in hex.
    """
    found = {path for kind in _OTHER_FILES for path in resolved.folder.glob(kind)}
    return sha256_files(sorted(path for path in found if path.name != _INDEX))


def load_tokenizer(resolved: ResolvedCheckpoint, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, with a pad token and the side to pad on.

    A tokenizer without a pad token (most decoders) gets one that exists: the one that the model's
    config names, else the end of sequence, else the unknown token. The vocabulary never grows.
    Models that classify from the last position, whatever it holds (XLNet), are padded on the left;
    decoders, which classify from the last token that is no padding, on the right, as GPT-2 counts
    positions from the left.

    Args:
        resolved: The checkpoint.
        config: The model as the user asks for it.

    Returns:
        The tokenizer.

    Raises:
        ModelError: It cannot be read, or holds no token that could serve as padding.
    """
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                resolved.folder, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise _unreadable("tokenizer", config, error) from error
    _check_vocabulary(tokenizer, resolved)
    model_config = _read_config(resolved.folder, config)
    _add_pad_token(tokenizer, model_config, config)
    if getattr(model_config, "summary_type", None) == "last":
        tokenizer.padding_side = "left"
    elif _is_decoder(model_config):
        tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    resolved: ResolvedCheckpoint,
    config: ModelConfig,
    *,
    labels: Sequence[str],
    dropout: float | None,
    seed: int,
    weights: PretrainedWeights | None = None,
) -> LoadedModel:
    """Load a checkpoint as a classifier.

    What the checkpoint lacks (the head, or one of another size) is drawn from `seed`; random
    states outside are left as they were.

    Args:
        resolved: The checkpoint.
        config: The model as the user asks for it.
        labels: Names of the classes in the order of their ids.
        dropout: Dropout probability everywhere; None keeps what the checkpoint's config says.
        seed: Seed of the new weights.
        weights: Its weights, from `read_weights`; the model shares them where they are fp32, and
            must be given its own parameters (`own_parameters`) before one of them changes. None
            reads them for this model alone.

    Returns:
        The model with its layer map.

    Raises:
        ModelError: The weights cannot be read or do not fit, or the layers cannot be mapped.
    """
    model_config = _read_config(resolved.folder, config)
    _set_labels(model_config, labels)
    apply_dropout(model_config, dropout)
    _set_pad_token(model_config, resolved, config)
    if weights is None:
        weights = read_weights(resolved, config)
    with quiet(), seeded_init(seed):
        model, info = _from_weights(resolved, config, model_config, weights)
    mismatched = {key[0] for key in info["mismatched_keys"]}
    parameters = {name for name, _ in model.named_parameters()}
    new = frozenset(parameters & (set(info["missing_keys"]) | mismatched))
    return LoadedModel(
        model=model, layer_map=_layer_map(resolved, model, new), newly_initialised=new
    )


def read_weights(
    resolved: ResolvedCheckpoint, config: ModelConfig, known: PretrainedWeights | None = None
) -> PretrainedWeights:
    """Read a checkpoint's weights once, for any number of models.

    Args:
        resolved: The checkpoint.
        config: The model as the user asks for it.
        known: What was read before; good for as long as nobody writes to the files.

    Returns:
        Its weights, mapped into memory; `known` where that is still good.

    Raises:
        ModelError: They cannot be read.
    """
    try:
        if known is not None and known.stamps == stamps_of(resolved.weight_files):
            return known
        return map_weights(resolved.weight_files)
    except (OSError, SafetensorError) as error:
        raise _unreadable("weights", config, error) from error


@functools.lru_cache(maxsize=8)
def _known_maps(resolved: ResolvedCheckpoint) -> dict[tuple[object, ...], LayerMap]:
    return {}


def _layer_map(
    resolved: ResolvedCheckpoint, model: PreTrainedModel, new: frozenset[str]
) -> LayerMap:
    """Map the layers once per process: they depend on the names of modules and parameters only."""
    names = tuple(name for name, _ in model.named_modules())
    maps = _known_maps(resolved)
    key = type(model), names, new
    if key not in maps:
        maps[key] = map_layers(model, new)
    return maps[key]


def _local_folder(config: ModelConfig) -> Path | None:
    """Return the folder that the user means, or None if it must be a hub id."""
    checkpoint = config.checkpoint
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(
            f"The model `{checkpoint}` is a file; accepted is a folder with `config.json` and"
            f" `{_WEIGHTS}`. Give the folder that holds it."
        )
    if path.is_absolute() or checkpoint[0] in ".~" or checkpoint.count("/") > 1:
        raise ModelError(
            f"The model folder `{checkpoint}` does not exist (seen from `{Path.cwd()}`). Correct"
            " the path, or give a hub id such as `distilbert/distilbert-base-uncased`."
        )
    return None


def _read_config(folder: Path, config: ModelConfig) -> PretrainedConfig:
    try:
        with quiet():
            return AutoConfig.from_pretrained(  # type: ignore[no-any-return]
                folder, trust_remote_code=config.trust_remote_code
            )
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise _unreadable("config", config, error) from error


def _unreadable(what: str, config: ModelConfig, error: Exception) -> ModelError:
    remedy = "Check that the folder is a whole checkpoint in the transformers format."
    if "trust_remote_code" in str(error):
        remedy = (
            "It needs code that lies with it: read that code, and if you trust it, set"
            " `trust_remote_code: true`."
        )
    return ModelError(
        f"The {what} of the model `{config.checkpoint}` cannot be read: {first_line(error)}."
        f" {remedy}"
    )


def _check_classifier(model_config: PretrainedConfig, config: ModelConfig) -> None:
    remote = getattr(model_config, "auto_map", None) or {}
    if type(model_config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return
    if config.trust_remote_code and AutoModelForSequenceClassification.__name__ in remote:
        return
    raise ModelError(
        f"The model `{config.checkpoint}` has model_type `{model_config.model_type}`, which"
        " transformers cannot load for sequence classification. Choose an encoder such as BERT or a"
        " decoder such as Llama."
    )


def _weight_files(folder: Path, config: ModelConfig) -> tuple[Path, ...]:
    """Return the weight files that transformers reads from a folder."""
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,)
    if (folder / _INDEX).is_file():
        return _shards(folder, config)
    found = sorted({path.name for kind in _OTHER_WEIGHTS for path in folder.glob(kind)})
    listed = f" (found: {', '.join(found)})" if found else ""  # other formats are not downloaded
    raise ModelError(
        f"The model `{config.checkpoint}` holds no `{_WEIGHTS}`{listed}. Only safetensors are"
        " read, as other formats can run code when they are opened. If you trust its source,"
        ' convert it once: `python -c "from transformers import AutoModel, AutoTokenizer as T;'
        f" s = '{config.checkpoint}'; [k.from_pretrained(s).save_pretrained('converted') for k in"
        ' (AutoModel, T)]"`, and give the folder `converted` as the model.'
    )


def _shards(folder: Path, config: ModelConfig) -> tuple[Path, ...]:
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    files = tuple(folder / name for name in sorted(set(index["weight_map"].values())))
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(
            f"The model `{config.checkpoint}` lacks {len(missing)} of the {len(files)} weight files"
            f" that its `{_INDEX}` names, first `{missing[0]}`. Download it again."
        )
    return files


def _is_decoder(model_config: PretrainedConfig) -> bool:
    """Tell whether a model classifies from its last token that is no padding."""
    kind = type(model_config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, resolved: ResolvedCheckpoint) -> None:
    # Without its files transformers makes a tokenizer that knows no word, and says nothing.
    files = sorted(tokenizer.vocab_files_names.values())
    if files and not any((resolved.folder / name).is_file() for name in files):
        raise ModelError(
            f"The model `{resolved.checkpoint}` has no tokenizer: its folder holds none of"
            f" {', '.join(files)}. Save the tokenizer that it was trained with there, with"
            " `tokenizer.save_pretrained(FOLDER)`."
        )


def _add_pad_token(
    tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, config: ModelConfig
) -> None:
    if tokenizer.pad_token is not None:
        return
    named = model_config.get_text_config().pad_token_id
    known = named is not None and 0 <= named < len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(named) if known else None
    token = token or tokenizer.eos_token or tokenizer.unk_token
    if token is None:
        raise ModelError(
            f"The tokenizer of the model `{config.checkpoint}` has no padding, end-of-sequence or"
            " unknown token, so rows of different lengths cannot be batched. Set `pad_token` in its"
            " `tokenizer_config.json`."
        )
    tokenizer.pad_token = token


@functools.lru_cache(maxsize=8)
def _pad_token_id(resolved: ResolvedCheckpoint, config: ModelConfig) -> int:
    return int(load_tokenizer(resolved, config).pad_token_id)


def _set_pad_token(
    model_config: PretrainedConfig, resolved: ResolvedCheckpoint, config: ModelConfig
) -> None:
    """Tell a decoder which token is padding, so that it classifies from the last real one."""
    text_config = model_config.get_text_config()
    if text_config.pad_token_id is None or _is_decoder(model_config):
        text_config.pad_token_id = _pad_token_id(resolved, config)


def _set_labels(model_config: PretrainedConfig, labels: Sequence[str]) -> None:
    for part in {id(c): c for c in (model_config, model_config.get_text_config())}.values():
        part.id2label = dict(enumerate(labels))
        part.label2id = {label: i for i, label in enumerate(labels)}
        part.problem_type = "single_label_classification"
        # No generation here: keys and values of earlier positions would only take memory.
        part.use_cache = False


def _from_weights(
    resolved: ResolvedCheckpoint,
    config: ModelConfig,
    model_config: PretrainedConfig,
    weights: PretrainedWeights,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Build a model around tensors, as transformers does around those of a file."""
    try:
        kind, takes_text_part = _classifier(resolved, config)
        found: Any = kind.from_pretrained(
            None,
            config=model_config.get_text_config() if takes_text_part else model_config,
            state_dict=dict(weights.tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise _unreadable("weights", config, error) from error
    model, info = found
    model.config.name_or_path = str(resolved.folder)
    weights.own_buffers(model)
    return model, info


@functools.lru_cache(maxsize=8)
def _classifier(
    resolved: ResolvedCheckpoint, config: ModelConfig
) -> tuple[type[PreTrainedModel], bool]:
    """Return which class classifies, and whether it takes the text part of its config alone."""
    model_config = _read_config(resolved.folder, config)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # only the class is wanted
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            model_config, trust_remote_code=config.trust_remote_code
        )
    return type(model), not isinstance(model.config, type(model_config))
