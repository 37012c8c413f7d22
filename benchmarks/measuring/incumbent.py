"""The other side: `Trainer.hyperparameter_search(backend="optuna")` at its best honest setting.

Dynamic padding, fused AdamW, large evaluation batches, nothing logged or saved, tokens made
beforehand; bf16 autocast and batches grouped by length where a probe shows that they help. Its
frozen blocks have no gradient but keep their dropout, as users get it.
"""

from __future__ import annotations

import gc
import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import optuna
import torch
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.freezing import plan_freezing
from automl_ft.models.load import load_tokenizer
from automl_ft.trial.prepare import PreparedStudy
from measuring.recipes import Configuration

__all__ = ["Found", "Incumbent", "IncumbentSetting", "IncumbentTrial"]

_MIB = 1024 * 1024
_PROBE_ROWS = 320


@dataclass(frozen=True, kw_only=True, slots=True)
class IncumbentSetting:
    """What a user may choose for all trials."""

    bf16: bool = False
    """Whether the forward pass runs in bf16 autocast."""
    group_by_length: bool = False
    """Whether rows of like length share a batch."""
    compile: bool = False
    """Whether the model goes through `torch.compile`."""
    eval_batch_size: int = 64
    """Rows at once in evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IncumbentTrial:
    """One trial of the list."""

    seconds: float
    """From the making of its model to that of the next one, or to the end."""
    f1: float
    """Macro F1 of its last evaluation."""
    updates: int
    """Optimiser steps."""
    peak_memory_mib: float
    """Peak of the device's allocator; 0 on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One search over a list."""

    seconds: float
    """The call of `hyperparameter_search`."""
    trials: tuple[IncumbentTrial, ...]
    """In the order of the list."""


class Incumbent:
    """Rows and model, ready for searches."""

    def __init__(self, study: PreparedStudy, epochs: int) -> None:
        """Turn the study's encoded rows into data sets.

        Args:
            study: From `prepare_study`; both sides train on the very same tokens.
            epochs: Passes over the training rows.
        """
        self._study = study
        self._opened = study.checkpoint(None)
        self._epochs = epochs
        self._train = _dataset(self._opened.splits["train"])
        self._validation = _dataset(self._opened.splits["validation"])
        self._tokenizer = load_tokenizer(self._opened.resolved, self._opened.config)

    def search(
        self,
        configurations: Sequence[Configuration],
        setting: IncumbentSetting,
        seed: int,
        *,
        rows: int | None = None,
        epochs: int | None = None,
    ) -> Found:
        """Run a list of configurations as one hyperparameter search.

        Args:
            configurations: The list; all of one batch size.
            setting: What is the same for all of them.
            seed: Seed of every trial.
            rows: Training rows; None takes all.
            epochs: Passes over them; None takes the benchmark's.

        Returns:
            How long it took, as a whole and by configuration, with scores.
        """
        run = _Run(self._study, configurations, seed)
        train = self._train if rows is None else self._train.select(range(rows))
        with tempfile.TemporaryDirectory() as folder:
            arguments = self._arguments(Path(folder), configurations[0], setting, seed)
            arguments.num_train_epochs = self._epochs if epochs is None else epochs
            trainer = Trainer(
                args=arguments,
                model_init=run.model_init,
                train_dataset=train,
                eval_dataset=self._validation,
                data_collator=self._collator(),
                compute_metrics=run.compute_metrics,
            )
            trainer.remove_callback(PrinterCallback)
            run.begin(trainer)
            trainer.hyperparameter_search(
                hp_space=run.hp_space,
                compute_objective=run.compute_objective,
                n_trials=len(configurations),
                direction="maximize",
                backend="optuna",
                sampler=optuna.samplers.GridSampler(run.grid, seed=0),
                # Optuna's default would stop the sixth trial where it is below the median.
                pruner=optuna.pruners.NopPruner(),
            )
            found = run.end()
        del trainer
        _free(self._study.device)
        return found

    def probe(
        self, configuration: Configuration, choices: Sequence[IncumbentSetting]
    ) -> dict[IncumbentSetting, float]:
        """Time settings on a few rows, in turn, each after a run that warms it up.

        Args:
            configuration: What is run.
            choices: The settings.

        Returns:
            Seconds of each: the less of two runs.
        """
        rows = min(_PROBE_ROWS, len(self._train))
        found = {setting: math.inf for setting in choices}
        for setting in choices:  # compilers and kernels meet their shapes here
            self.search([configuration], setting, 0, rows=rows, epochs=1)
        for setting in (*choices, *reversed(choices)):
            taken = self.search([configuration], setting, 0, rows=rows, epochs=1).seconds
            found[setting] = min(found[setting], taken)
        return found

    def _collator(self) -> DataCollatorWithPadding:
        # Tensor cores want multiples of eight; on a CPU more padding is only more work.
        multiple = 8 if self._study.device.type == "cuda" else None
        return DataCollatorWithPadding(self._tokenizer, pad_to_multiple_of=multiple)

    def _arguments(
        self, folder: Path, first: Configuration, setting: IncumbentSetting, seed: int
    ) -> TrainingArguments:
        is_cpu = self._study.device.type == "cpu"
        return TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=first.batch_size,
            per_device_eval_batch_size=setting.eval_batch_size,
            lr_scheduler_type="linear",
            warmup_steps=first.warmup_ratio,
            weight_decay=first.weight_decay,
            optim="adamw_torch_fused",
            bf16=setting.bf16,
            torch_compile=setting.compile,
            train_sampling_strategy="group_by_length" if setting.group_by_length else "random",
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=not is_cpu,
            use_cpu=is_cpu,
            seed=seed,
        )


class _Run:
    """What one search asks back: models, spaces, scores; and its clock."""

    def __init__(
        self, study: PreparedStudy, configurations: Sequence[Configuration], seed: int
    ) -> None:
        self.grid = {"configuration": list(range(len(configurations)))}
        self._study = study
        self._configurations = configurations
        self._seed = seed
        self._order: list[int] = []
        self._starts: list[float] = []
        self._f1: dict[int, float] = {}
        self._updates: dict[int, int] = {}
        self._peaks: dict[int, float] = {}
        self._trainer: Trainer | None = None
        self._began = 0.0

    def begin(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._trainer = trainer
        self._began = time.perf_counter()

    def end(self) -> Found:
        """Stop the clock and sort the trials."""
        now = time.perf_counter()
        if len(set(self._updates.values())) > 1:
            raise RuntimeError(f"Configurations took different numbers of updates: {self._updates}")
        times = dict(zip(self._order, itertools.pairwise([*self._starts, now]), strict=True))
        trials = tuple(
            IncumbentTrial(
                seconds=times[index][1] - times[index][0],
                f1=self._f1[index],
                updates=self._updates[index],
                peak_memory_mib=self._peaks[index],
            )
            for index in range(len(self._configurations))
        )
        return Found(seconds=now - self._began, trials=trials)

    def model_init(self, trial: optuna.Trial | None) -> PreTrainedModel:
        """Build a model; `hyperparameter_search` calls this before it asks for the space.

        So the configuration is suggested here: dropout and freezing that are suggested in
        `hp_space` come too late and are silently not applied.
        """
        index = 0
        if trial is not None:
            self._starts.append(time.perf_counter())
            index = trial.suggest_categorical("configuration", self.grid["configuration"])
            self._order.append(index)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        configuration = self._configurations[index]
        opened = self._study.checkpoint(None)
        loaded = self._study.load_model(opened, dropout=configuration.dropout, seed=self._seed)
        hyperparameters = configuration.hyperparameters(loaded.layer_map.num_layers, 1)
        plan_freezing(loaded.layer_map, hyperparameters).apply(loaded.model, 0)
        return loaded.model

    def hp_space(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return the training arguments of a trial."""
        configuration = self._configurations[trial.params["configuration"]]
        return {"learning_rate": configuration.learning_rate}

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score an evaluation with the very function that our side uses."""
        return self._study.metrics(
            np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
        )

    def compute_objective(self, metrics: dict[str, float]) -> float:
        """Note an evaluation of the running trial; its last one stays."""
        assert self._trainer is not None
        index = self._order[-1]
        self._f1[index] = metrics["eval_f1_macro"]
        self._updates[index] = self._trainer.state.global_step
        is_cuda = self._study.device.type == "cuda"
        self._peaks[index] = torch.cuda.max_memory_allocated() / _MIB if is_cuda else 0.0
        return metrics["eval_f1_macro"]


def _dataset(split: EncodedSplit) -> datasets.Dataset:
    """Return rows as the Trainer takes them: unpadded lists."""
    rows = [split.row(index) for index in range(len(split))]
    columns: dict[str, list[Any]] = {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "attention_mask": [[1] * len(row.input_ids) for row in rows],
        "labels": split.labels.tolist(),
    }
    if split.token_type_ids is not None:
        columns["token_type_ids"] = [np.asarray(row.token_type_ids).tolist() for row in rows]
    return datasets.Dataset.from_dict(columns)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
