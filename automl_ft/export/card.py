"""What does the model card say: what the model is, where it comes from, how far to trust it?

In the hub's format: metadata with `model-index` on top, Markdown below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from automl_ft.config.duration import format_duration
from automl_ft.data.bundled import BUNDLED
from automl_ft.export.job import TOLERANCE, ExportJob
from automl_ft.specs.hyperparameters import HYPERPARAMETERS

__all__ = ["card_text", "write_card"]

_HEADLINE = ("f1_macro", "f1_micro", "f1_weighted", "accuracy", "mcc", "loss")
"""Metrics of the card besides the objective, as far as the trial has them."""
_HUB_IDS = {"minilm-l6": "sentence-transformers/all-MiniLM-L6-v2"}
"""Where the bundled models come from."""
_SHOWN_CLASSES = 50
"""Classes in the table of rows by split."""
_METRIC_TYPES = {"mcc": "matthews_correlation", "accuracy": "accuracy", "loss": "loss"}
"""The hub's metric types; all others here are F1."""


def write_card(job: ExportJob, value: float, path: Path) -> None:
    """Write the model card.

    Args:
        job: The export.
        value: The objective of the written model, as it was checked.
        path: The file.
    """
    path.write_text(card_text(job, value), encoding="utf-8")


def card_text(job: ExportJob, value: float) -> str:
    """Write the text of the model card.

    Args:
        job: The export.
        value: The objective of the written model, as it was checked.

    Returns:
        Metadata between `---` lines, then Markdown.
    """
    sections = [
        _introduction(job),
        _usage(job),
        _results(job, value),
        _recipe(job),
        _search(job),
        _importances(job),
        _data(job),
        _limits(job),
        _files(job),
    ]
    body = "\n\n".join("\n".join(section) for section in sections)
    return str(ModelCard(f"---\n{_metadata(job, value).to_yaml()}\n---\n\n{body}\n"))


def _metadata(job: ExportJob, value: float) -> ModelCardData:
    objective = job.config.objective
    metrics = {**job.metrics, f"validation_{objective}": value}
    names = list(dict.fromkeys([objective, *_HEADLINE]))
    hub_id = _data_hub_id(job)
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=hub_id or "local",
            dataset_name=hub_id or _source_name(job),
            dataset_split="validation",
            metric_type=_METRIC_TYPES.get(name, "f1"),
            metric_name=f"Validation {name}",
            metric_value=metrics[f"validation_{name}"],
        )
        for name in names
        if f"validation_{name}" in metrics
    ]
    return ModelCardData(
        base_model=_base_model(job),
        datasets=[hub_id] if hub_id else None,
        eval_results=results,
        library_name="transformers",
        metrics=sorted({_METRIC_TYPES.get(objective, "f1"), "accuracy"}),
        model_name=f"{job.study}-trial-{job.number}",
        pipeline_tag="text-classification",
        tags=["text-classification", "automl-ft", "hyperparameter-optimization"],
    )


def _introduction(job: ExportJob) -> list[str]:
    labels = ", ".join(f"`{label}`" for label in job.facts.data.labels[:_SHOWN_CLASSES])
    return [
        f"# {job.study}, trial {job.number}",
        "",
        f"A classifier of {_kind(job)} into {len(job.facts.data.labels)} classes ({labels}),"
        f" fine-tuned from `{_pretrained_name(job)}`. Its hyperparameters were searched with"
        f" automl-ft {job.version}; this is trial {job.number} of the study `{job.study}`.",
    ]


def _usage(job: ExportJob) -> list[str]:
    example = '"a text"'
    if len(job.config.data.text) == 2:
        example = '{"text": "a text", "text_pair": "another"}'
    return [
        "## How to use it",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", model="model")  # the folder model/',
        f"print(classify({example}, truncation=True))",
        "```",
        "",
        f"With `truncation=True` texts are cut to {job.checkpoint.max_length} tokens, as in"
        " training. For a file of rows: `automl-ft predict model rows.csv --to predictions.csv`.",
    ]


def _results(job: ExportJob, value: float) -> list[str]:
    scores = {
        name.removeprefix("validation_"): metric
        for name, metric in job.metrics.items()
        if name.startswith("validation_")
    }
    overall = [(name, f"{score:.4f}") for name, score in scores.items() if "/" not in name]
    kinds = ("precision", "recall", "f1")
    by_class = [
        (label, *(f"{scores.get(f'{kind}/{label}', float('nan')):.4f}" for kind in kinds))
        for label in job.facts.data.labels[:_SHOWN_CLASSES]
    ]
    return [
        "## Results",
        "",
        f"On the {job.facts.data.num_examples['validation']} rows of the validation split, at the"
        f" best validated checkpoint. The search maximised `{job.config.objective}`; the model"
        f" in this folder was loaded with plain transformers and gives {value:.6f} in fp32.",
        *_rounding(job, value),
        "",
        *_table(("metric", "value"), overall),
        "",
        *_table(("class", *kinds), by_class),
        "",
        "**The search chose this trial by these very rows, so they flatter it. The test split was"
        " not read by the search**: measure on rows that played no part before you rely on a"
        " number.",
    ]


def _rounding(job: ExportJob, value: float) -> list[str]:
    """Own up where the written model does not give the trial's value to the last row."""
    if abs(value - job.value) <= TOLERANCE:
        return []
    return [
        "",
        f"That is not the trial's own {job.value:.6f}, to which the tables below belong: its scores"
        " are the same but for rounding, which differs between devices and numbers of threads, and"
        " some row's two best classes lie closer together than that.",
    ]


def _recipe(job: ExportJob) -> list[str]:
    rows = [
        (f"`{name}`", "the checkpoint's own" if value is None else _shown(value), known.description)
        for name, known in HYPERPARAMETERS.items()
        if name != "model" or job.hyperparameters.get("model") is not None
        for value in (job.hyperparameters.get(name),)
    ]
    return [
        "## Recipe",
        "",
        f"Seed {job.seed}; {job.examples} training examples seen in"
        f" {format_duration(job.seconds)} on {job.facts.device}, computed in"
        f" {job.facts.precision_of(job.checkpoint)} on {job.checkpoint.batching} batches."
        " `automl-ft search config.yaml` trains it again; `python train.py` does about the same"
        " with plain transformers.",
        "",
        *_table(("hyperparameter", "value", "meaning"), rows),
    ]


def _search(job: ExportJob) -> list[str]:
    search, config = job.search, job.config
    counts = ", ".join(f"{count} {state}" for state, count in search.counts.items())
    timeout = config.budget.timeout_seconds
    limit = "" if timeout is None else f" and {format_duration(timeout)}"
    names = list(dict.fromkeys(name for row in search.top for name in row.params))
    rows = [
        (
            f"**{row.number}** (this)" if row.number == job.number else str(row.number),
            f"{row.value:.4f}",
            format_duration(row.seconds),
            *(_shown(row.params[name]) if name in row.params else "" for name in names),
        )
        for row in search.top
    ]
    return [
        "## The search it came from",
        "",
        f"{_counted(sum(search.counts.values()), 'trial')} ({counts}) in"
        f" {format_duration(search.seconds)}; the budget was"
        f" {_counted(config.budget.trials, 'trial')}{limit}. Sampler `{config.sampler}`,"
        f" pruner `{config.pruner}`, seed {config.seed}.",
        "",
        _verdict(job),
        "",
        "The best of the complete trials:",
        "",
        *_table(("trial", config.objective, "time", *(f"`{name}`" for name in names)), rows),
    ]


def _verdict(job: ExportJob) -> str:
    number, value = job.search.default_number, job.search.default_value
    if number is None or value is None:
        compared = "The default recipe did not run to its end, so there is no comparison."
    elif job.number == number:
        compared = "This is the default recipe itself."
    else:
        compared = (
            f"The default recipe (trial {number}) has {value:.4f}, this trial {job.value:.4f}."
        )
    return f"{compared} {job.search.verdict}" if job.search.verdict else compared


def _importances(job: ExportJob) -> list[str]:
    rows = [(f"`{name}`", f"{share:.3f}") for name, share in job.search.importances.items()]
    table = ["", *_table(("hyperparameter", "importance"), rows)] if rows else []
    return ["## Hyperparameter importances", "", job.search.importances_note, *table]


def _data(job: ExportJob) -> list[str]:
    data, checkpoint = job.facts.data, job.checkpoint
    splits = ("train", "validation", "test")
    rows = [
        (label, *(str(data.class_counts.get(split, {}).get(label, 0)) for split in splits))
        for label in data.labels[:_SHOWN_CLASSES]
    ]
    more = len(data.labels) - len(rows)
    total = ("**all**", *(str(data.num_examples.get(split, 0)) for split in splits))
    return [
        "## Data",
        "",
        f"`{_source_name(job)}`; SHA-256 of all rows `{data.fingerprint}`."
        f" Of the training rows {checkpoint.num_truncated} were longer than"
        f" {checkpoint.max_length} tokens and were cut.",
        "",
        *_table(("class", *splits), [*rows, total]),
        *(["", f"{more} more classes are not shown."] if more else []),
        *(["", "Met while reading:", ""] if data.notes else []),
        *(f"- {_line(note.message)}" for note in data.notes),
    ]


def _limits(job: ExportJob) -> list[str]:
    data = job.facts.data
    return [
        "## Limits",
        "",
        f"- It knows {len(data.labels)} classes and gives one of them to every text, also to texts"
        " that belong to none.",
        "- Its scores are softmax outputs; they were not calibrated.",
        f"- It was trained on {data.num_examples['train']} rows and validated on"
        f" {data.num_examples['validation']}, with a single seed: another seed or another split"
        " moves the result, on small data as much as the hyperparameters do.",
        f"- It reads the first {job.checkpoint.max_length} tokens of a text.",
        "- It inherits the biases and the licence terms of the pretrained model and of the data;"
        " nothing was checked for fairness.",
    ]


def _files(job: ExportJob) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in job.facts.versions.items())
    return [
        "## Files",
        "",
        "- `model/`: weights (safetensors), tokenizer, `automl_ft.json` (what it was trained on)",
        "- `config.yaml`: the recipe as a study file for `automl-ft search`",
        "- `train.py`: the recipe as a script on `transformers.Trainer`",
        "",
        f"Trained with {versions}; pretrained weights SHA-256 `{job.checkpoint.weights_hash}`"
        + (f", revision `{job.checkpoint.revision}`." if job.checkpoint.revision else "."),
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _kind(job: ExportJob) -> str:
    return "pairs of texts" if len(job.config.data.text) == 2 else "texts"


def _base_model(job: ExportJob) -> str | None:
    """Return the pretrained model's hub id; a folder has none, and its name would mislead."""
    named = job.checkpoint.checkpoint
    return named if job.checkpoint.revision else _HUB_IDS.get(named)


def _pretrained_name(job: ExportJob) -> str:
    """Name the pretrained model without the path of a folder on somebody's machine."""
    return _base_model(job) or Path(job.checkpoint.checkpoint).name


def _source_name(job: ExportJob) -> str:
    data = job.config.data
    path = data.path or data.train or "data"
    files = (path,) if isinstance(path, str) else path
    return ", ".join(file if _is_hub_id(file) else Path(file).name for file in files)


def _data_hub_id(job: ExportJob) -> str | None:
    path = job.config.data.path
    return path if isinstance(path, str) and _is_hub_id(path) else None


def _is_hub_id(path: str) -> bool:
    """Tell hub ids from files and bundled names; files that exist have absolute paths here."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) is not None
    return is_id and path not in BUNDLED and not Path(path).suffix


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [
        "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in row) + " |" for row in lines
    ]


def _line(text: str) -> str:
    return " ".join(text.split())
