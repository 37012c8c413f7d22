"""When does a search take the first step of each trial? A program that `startup.py` runs.

It prints a line `start N` when trial N begins and `step N` after its first optimiser step; whoever
reads them has the clock. Each side imports only what a user's own script would.

    python first_step.py {ours,trainer} STUDY_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_ft.search.events import SearchSnapshot

__all__ = ["main"]


def main() -> None:
    """Run the side that the command line names."""
    side, file = sys.argv[1:]
    if side == "ours":
        run_ours(Path(file))
    else:
        run_trainer(Path(file))


def say(what: str, number: int) -> None:
    """Print a line at once.

    Args:
        what: `start` or `step`.
        number: The trial.
    """
    print(what, number, flush=True)


def run_ours(file: Path) -> None:
    """Search as `automl-ft search FILE` does.

    Args:
        file: The study file.
    """
    from automl_ft.config.load import load_config
    from automl_ft.search.events import SilentListener
    from automl_ft.search.run import run_search

    class Listener(SilentListener):
        """Says what happens to trials."""

        def __init__(self) -> None:
            self._stepped: set[int] = set()

        def trial_started(self, snapshot: SearchSnapshot, number: int, *, is_resumed: bool) -> None:
            """Say that a trial begins."""
            say("start", number)

        def changed(self, snapshot: SearchSnapshot) -> None:
            """Say it once for each trial that has trained a step."""
            for trial in snapshot.running:
                if trial.fraction > 0 and trial.number not in self._stepped:
                    self._stepped.add(trial.number)
                    say("step", trial.number)

    run_search(load_config(str(file)).config, listener=Listener())


def run_trainer(file: Path) -> None:
    """Search with `Trainer.hyperparameter_search` on the same rows and model.

    Args:
        file: The study file.
    """
    import datasets
    import transformers
    import yaml

    from automl_ft.models.bundled import bundled_folder

    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = str(bundled_folder(study["model"]) or study["model"])
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = datasets.load_dataset("csv", data_files={"train": study["data"]["train"]})["train"]
    rows = rows.class_encode_column("label").rename_column("label", "labels")
    length = study["data"]["max_length"]
    rows = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=length),
        batched=True,
        remove_columns=["text"],
    )
    search_with_trainer(study, model, tokenizer, rows)


def search_with_trainer(study: dict[str, Any], model: str, tokenizer: Any, rows: Any) -> None:
    """Run the trials of a study.

    Args:
        study: The study file's contents.
        model: Folder of the model.
        tokenizer: Its tokenizer.
        rows: Encoded rows.
    """
    import optuna
    import transformers

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    num_labels = rows.features["labels"].num_classes

    class Callback(transformers.TrainerCallback):
        """Says when a trial has trained a step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Say it after the first step."""
            if state.global_step == 1:
                say("step", numbers[-1])

    def model_init(trial: optuna.Trial | None) -> Any:
        if trial is not None:
            numbers.append(trial.number)
            say("start", trial.number)
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=num_labels
        )

    numbers: list[int] = []
    is_cpu = study["device"] == "cpu"
    arguments = transformers.TrainingArguments(
        output_dir=study["output"],
        per_device_train_batch_size=study["space"]["batch_size"],
        num_train_epochs=study["space"]["epochs"],
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=is_cpu,
        dataloader_pin_memory=not is_cpu,
    )
    trainer = transformers.Trainer(
        args=arguments,
        model_init=model_init,
        train_dataset=rows,
        eval_dataset=rows.select(range(16)),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[Callback()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("rate", 1e-5, 1e-4)},
        n_trials=study["budget"]["trials"],
        direction="minimize",
        backend="optuna",
        pruner=optuna.pruners.NopPruner(),
    )


if __name__ == "__main__":
    main()
