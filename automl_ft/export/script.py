"""How does `train.py` read: the same recipe on `transformers.Trainer`, without automl-ft?

Only what the recipe uses is written, so that a plain recipe makes a plain script. Each function
here writes one block of it; what the blocks say is found out in `export.recipe`.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from automl_ft.export import script_blocks as blocks
from automl_ft.export.job import ExportJob
from automl_ft.export.literals import assignment
from automl_ft.export.model import RebuiltModel
from automl_ft.export.recipe import ScriptFacts, script_facts
from automl_ft.specs.validation import resolved_validations, written_validations

__all__ = ["script_text", "write_script"]

_EVAL_ROWS = 64
"""Rows at once in validation where the study chose by the memory that it found."""


def write_script(job: ExportJob, rebuilt: RebuiltModel, path: Path) -> None:
    """Write the training script of a trial.

    Args:
        job: The export.
        rebuilt: Its model.
        path: The file.

    Raises:
        DataError: The study's copy of the rows cannot be read.
    """
    path.write_text(script_text(script_facts(job, rebuilt)), encoding="utf-8")


def script_text(facts: ScriptFacts) -> str:
    """Write the training script.

    Args:
        facts: What it says.

    Returns:
        Python source, formatted.
    """
    head = "\n\n".join([_docstring(facts), _imports(facts), _constants(facts)])
    parts = [
        head,
        blocks.READ_ROWS,
        *_encoding(facts),
        *_freezing(facts),
        *([blocks.FRESH_BLOCKS] if facts.reinitialised else []),
        *_optimizer(facts),
        _loss(facts),
        _metrics(facts),
        _main(facts),
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _docstring(facts: ScriptFacts) -> str:
    job = facts.job
    summary = (
        f"Train the recipe of trial {job.number} of study `{job.study}` with plain transformers."
    )
    objective = f"{job.config.objective} {job.value:.4f} on the validation split"
    lines = [
        f'"""{summary}' if len(summary) < 80 else '"""Train one recipe with plain transformers.',
        "",
        f'    pip install "transformers[torch]>=5.0" datasets scikit-learn{_package(facts)}',
        "    python train.py --output trained",
        "",
        f"The search measured {objective}. The result here will be",
        "close but not equal:",
        "",
        *(line for point in _differences(facts) for line in _wrapped(point)),
        '"""',
        "",
        "from __future__ import annotations",
    ]
    return "\n".join(lines)


def _package(facts: ScriptFacts) -> str:
    """Name the package of a bundled model, as pip knows it."""
    return "" if facts.package is None else f" {facts.package[0].replace('_', '-')}"


def _differences(facts: ScriptFacts) -> list[str]:
    """Say what this script does otherwise than the search did."""
    recipe, per_epoch = facts.recipe, _per_epoch(facts)
    points = ["rows come in another order, and all that is random is drawn otherwise"]
    if per_epoch != 1:
        points.append(f"the model is validated once an epoch, not {written_validations(per_epoch)}")
    if recipe.word_swap or recipe.word_deletion:
        points.append("words are what white space separates, not what the tokenizer calls words")
    if facts.class_weights:
        points.append("the weighted loss is divided by the rows, not by the sum of their weights")
    if not _has_own_optimizer(facts) and recipe.weight_decay:
        points.append("which parameters are spared from weight decay is left to the Trainer")
    return points


def _wrapped(point: str) -> list[str]:
    return textwrap.wrap(point, 86, initial_indent="- ", subsequent_indent="  ")


def _imports(facts: ScriptFacts) -> str:
    recipe = facts.recipe
    is_random = recipe.mixup or _is_augmented(facts)
    functions = ["cross_entropy", *(["softshrink"] if recipe.l1 else [])]
    classes = [
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
        *(["EarlyStoppingCallback"] if _patience(facts) else []),
        "Trainer",
        *(["TrainerCallback"] if recipe.l1 else []),
        "TrainingArguments",
        "set_seed",
    ]
    lines = [
        "import argparse",
        *(["import random"] if is_random else []),
        *(["from importlib.resources import files"] if facts.package else []),
        "from pathlib import Path",
        "",
        "import torch",
        "from datasets import Dataset",
        f"from sklearn.metrics import {', '.join(sorted(_metric_functions(facts)))}",
        f"from torch.nn.functional import {', '.join(functions)}",
        "from transformers import (",
        *(f"    {name}," for name in classes),
        ")",
    ]
    return "\n".join(lines)


def _constants(facts: ScriptFacts) -> str:
    job = facts.job
    revision = job.checkpoint.revision
    data = {
        **({"REVISION": revision} if revision else {}),
        "TEXT": list(job.config.data.text),
        "LABEL": job.config.data.label,
        "LABELS": list(job.facts.data.labels),
        "MAX_LENGTH": job.checkpoint.max_length,
        "TRAIN": facts.data_files["train"],
        "VALIDATION": facts.data_files["validation"],
        "SEED": job.seed,
    }
    constants = {**data, **_recipe_constants(facts)}
    lines = [assignment(f"{name} = ", value) for name, value in constants.items()]
    return "\n".join([_checkpoint(facts), *lines])


def _recipe_constants(facts: ScriptFacts) -> dict[str, Any]:
    """Return what the chosen blocks refer to."""
    recipe = facts.recipe
    simple: dict[str, Any] = {
        "MODEL_OPTIONS": dict(facts.model_options),
        "CLASS_WEIGHTS": list(facts.class_weights),
        "REINITIALISED": list(facts.reinitialised),
        "FROZEN": facts.frozen,
        "MIXUP": recipe.mixup,
    }
    constants = {name: value for name, value in simple.items() if value}
    if facts.frozen_parts:
        constants["FROZEN_PARTS"] = list(facts.frozen_parts)
        constants["NUM_PARTS"] = facts.num_stages - 1
        constants["UNFREEZING_PACE"] = recipe.unfreezing_pace
    if recipe.word_swap or recipe.word_deletion:
        constants |= {"WORD_SWAP": recipe.word_swap, "WORD_DELETION": recipe.word_deletion}
    if recipe.token_dropout:
        constants["TOKEN_DROPOUT"] = recipe.token_dropout
        constants["REPLACEMENT_TOKEN"] = facts.replacement_token_id
    if _has_own_optimizer(facts):
        constants |= {"LEARNING_RATE": recipe.learning_rate, "WEIGHT_DECAY": recipe.weight_decay}
    if facts.depths:
        constants |= {
            "LAYERWISE_LR_DECAY": recipe.layerwise_lr_decay,
            "DEPTHS": dict(facts.depths),
        }
    return constants | ({"L1": recipe.l1} if recipe.l1 else {})


def _checkpoint(facts: ScriptFacts) -> str:
    if facts.package is None:
        return assignment("CHECKPOINT = ", facts.checkpoint)
    package, folder = facts.package
    return f'CHECKPOINT = str(files("{package}") / "{folder}")'


def _encoding(facts: ScriptFacts) -> list[str]:
    if not _is_augmented(facts):
        return [blocks.TOKENIZED_ROWS]
    recipe = facts.recipe
    has_words = recipe.word_swap or recipe.word_deletion
    texts = "map(change_words, self.texts[index])" if has_words else "self.texts[index]"
    rows = blocks.AUGMENTED_ROWS.format(
        texts=texts, dropout=blocks.TOKEN_DROPOUT if recipe.token_dropout else ""
    )
    return [blocks.TOKENIZED_ROWS, *([blocks.WORD_CHANGES] if has_words else []), rows]


def _freezing(facts: ScriptFacts) -> list[str]:
    if facts.frozen:
        return [blocks.FREEZE, blocks.FROZEN_TRAINER]
    return [blocks.GRADUAL_TRAINER] if facts.frozen_parts else []


def _optimizer(facts: ScriptFacts) -> list[str]:
    if not _has_own_optimizer(facts):
        return []
    rate = "            rate = LEARNING_RATE"
    if facts.depths:
        rate = (
            "            depth = next(DEPTHS[part] for part in DEPTHS if name.startswith(part))\n"
            "            rate = LEARNING_RATE * LAYERWISE_LR_DECAY**depth"
        )
    built = blocks.GROUPED_OPTIMIZER.format(rate=rate)
    return [built, *([blocks.L1_CALLBACK] if facts.recipe.l1 else [])]


def _loss(facts: ScriptFacts) -> str:
    recipe = facts.recipe
    logits = "logits" if recipe.mixup else 'outputs["logits"]'
    weight = f"    weight = torch.tensor(CLASS_WEIGHTS, device={logits}.device)\n"
    options = ["        weight=weight,\n"] if facts.class_weights else []
    if recipe.label_smoothing:
        options.append(f"        label_smoothing={recipe.label_smoothing!r},\n")
    block = blocks.MIXED_LOSS if recipe.mixup else blocks.CLASSIFICATION_LOSS
    return block.format(weight=weight if facts.class_weights else "", options="".join(options))


def _metrics(facts: ScriptFacts) -> str:
    calls = {"accuracy": "accuracy_score(true, predicted)", "f1_macro": _f1("macro")}
    objective = facts.job.config.objective
    calls[objective] = _objective(facts)
    lines = [
        "def compute_metrics(prediction) -> dict[str, float]:",
        '    """Score the predicted classes of all rows."""',
        "    true, predicted = prediction.label_ids, prediction.predictions.argmax(axis=1)",
        '    options = {"labels": range(len(LABELS)), "zero_division": 0}',
        "    return {",
        *(f'        "{name}": {call},' for name, call in calls.items()),
        "    }",
    ]
    return "\n".join(lines)


def _f1(average: str) -> str:
    return f'f1_score(true, predicted, average="{average}", **options)'


def _objective(facts: ScriptFacts) -> str:
    """Write the call of scikit-learn that computes the objective."""
    config = facts.job.config
    if config.objective == "accuracy":
        return "accuracy_score(true, predicted)"
    if config.objective == "mcc":
        return "matthews_corrcoef(true, predicted)"
    if config.objective == "f1_binary":
        positive = facts.job.facts.data.labels.index(str(config.positive_label))
        return f"f1_score(true == {positive}, predicted == {positive}, zero_division=0)"
    return _f1(config.objective.removeprefix("f1_"))


def _metric_functions(facts: ScriptFacts) -> list[str]:
    has_mcc = facts.job.config.objective == "mcc"
    return ["accuracy_score", "f1_score", *(["matthews_corrcoef"] if has_mcc else [])]


def _main(facts: ScriptFacts) -> str:
    return "\n".join(
        [
            "def main() -> None:",
            '    """Train, print the validation metrics, save the model."""',
            "    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])",
            '    parser.add_argument("--train", default=TRAIN, help="parquet, csv or json file")',
            '    parser.add_argument("--validation", default=VALIDATION, help="the same")',
            '    parser.add_argument("--output", default="trained", help="folder for the model")',
            "    arguments = parser.parse_args()",
            "",
            "    set_seed(SEED)",
            *_loading(facts),
            *_trainer(facts),
            "    trainer.train()",
            "    for name, value in trainer.evaluate().items():",
            '        print(f"{name}: {value}")',
            "    trainer.save_model(arguments.output)",
            "",
            "",
            'if __name__ == "__main__":',
            "    main()",
        ]
    )


def _loading(facts: ScriptFacts) -> list[str]:
    """Write the lines that load tokenizer and model."""
    source = "CHECKPOINT, revision=REVISION" if facts.job.checkpoint.revision else "CHECKPOINT"
    if facts.job.config.model.trust_remote_code:
        source += ", trust_remote_code=True"
    pad_token, side = facts.pad_token, facts.padding_side
    return [
        f"    tokenizer = AutoTokenizer.from_pretrained({source})",
        "    tokenizer.model_max_length = MAX_LENGTH",
        *([assignment("    tokenizer.pad_token = ", pad_token)] if pad_token else []),
        *([assignment("    tokenizer.padding_side = ", side)] if side else []),
        "    model = AutoModelForSequenceClassification.from_pretrained(",
        *(f"        {part}," for part in source.split(", ")),
        "        dtype=torch.float32,",
        "        id2label=dict(enumerate(LABELS)),",
        "        label2id={label: index for index, label in enumerate(LABELS)},",
        "        ignore_mismatched_sizes=True,",
        *(["        **MODEL_OPTIONS,"] if facts.model_options else []),
        "    )",
        *(["    reinitialise(model)"] if facts.reinitialised else []),
        *(["    freeze(model)"] if facts.frozen else []),
    ]


def _trainer(facts: ScriptFacts) -> list[str]:
    """Write the lines that build the trainer."""
    kind = "PartlyFrozenTrainer" if facts.frozen else "Trainer"
    kind = "GraduallyUnfrozenTrainer" if facts.frozen_parts else kind
    rows = "AugmentedRows" if _is_augmented(facts) else "encode"
    patience = _patience(facts)
    callbacks = ["ShrinkWeights()"] if facts.recipe.l1 else []
    if patience:
        callbacks.append(f"EarlyStoppingCallback(early_stopping_patience={patience})")
    return [
        f"    trainer = {kind}(",
        "        model=model,",
        "        args=TrainingArguments(",
        *(f"            {name}={value}," for name, value in _arguments(facts).items()),
        "        ),",
        f"        train_dataset={rows}(*read_rows(arguments.train), tokenizer),",
        "        eval_dataset=encode(*read_rows(arguments.validation), tokenizer),",
        "        processing_class=tokenizer,",
        "        compute_loss_func=compute_loss,",
        "        compute_metrics=compute_metrics,",
        *([f"        callbacks=[{', '.join(callbacks)}],"] if callbacks else []),
        *(
            ["        optimizers=(build_optimizer(model), None),"]
            if _has_own_optimizer(facts)
            else []
        ),
        "    )",
    ]


def _arguments(facts: ScriptFacts) -> dict[str, str]:
    """Return the arguments of `TrainingArguments` as source; Trainer's own defaults left out."""
    recipe, training = facts.recipe, facts.job.config.training
    has_own = _has_own_optimizer(facts)
    eval_rows = training.eval_batch_size
    values: dict[str, Any] = {
        "seed": "SEED",
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": facts.batch_size,
        "gradient_accumulation_steps": facts.accumulation if facts.accumulation > 1 else None,
        "per_device_eval_batch_size": _EVAL_ROWS if eval_rows == "auto" else eval_rows,
        "learning_rate": "LEARNING_RATE" if has_own else recipe.learning_rate,
        "lr_scheduler_type": f'"{recipe.lr_schedule}"',
        "warmup_steps": recipe.warmup_ratio or None,
        "weight_decay": recipe.weight_decay or None if not has_own else None,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": "True" if _precision(facts) == "bf16" else None,
        "tf32": "True" if _precision(facts) == "tf32" else None,
        "eval_strategy": '"epoch"',
        "save_strategy": '"epoch"',
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": f'"{facts.job.config.objective}"',
        "report_to": '"none"',
    }
    shown = {name: str(value) for name, value in values.items() if value is not None}
    return {"output_dir": "arguments.output", **shown}


def _precision(facts: ScriptFacts) -> str:
    return facts.job.facts.precision_of(facts.job.checkpoint)


def _patience(facts: ScriptFacts) -> int | None:
    """Return the patience of early stopping in epochs; None without."""
    patience = facts.job.config.training.early_stopping_patience
    return None if patience is None else math.ceil(patience / _per_epoch(facts))


def _per_epoch(facts: ScriptFacts) -> float:
    """Return the validations of the study in each epoch."""
    job = facts.job
    return resolved_validations(job.config.training.validations_per_epoch, job.facts)


def _is_augmented(facts: ScriptFacts) -> bool:
    recipe = facts.recipe
    return bool(recipe.token_dropout or recipe.word_swap or recipe.word_deletion)


def _has_own_optimizer(facts: ScriptFacts) -> bool:
    """Tell whether the recipe needs parameter groups that the Trainer does not make."""
    return bool(facts.recipe.l1 or facts.depths)
