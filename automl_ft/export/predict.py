"""What does an exported model say about the rows of a file?

`python -m automl_ft.export.predict MODEL_DIR FILE`: the process in which `automl-ft predict` runs,
as the command line itself never imports torch. A row without text stays in its place, with an
empty label and score: the model was never shown an empty text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from automl_ft.config import checks
from automl_ft.errors import AutomlFtError, ExportError, UsageError
from automl_ft.export.about import ABOUT
from automl_ft.export.rows import check_ending, read_rows, texts_of, with_columns, write_rows

__all__ = ["LABEL", "SCORE", "PredictOptions", "main", "predict_file"]

LABEL = "predicted_label"
"""Column of the predicted class."""
SCORE = "score"
"""Column of its probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """How rows are predicted."""

    text: tuple[str, ...] = ()
    """Columns of the text; empty takes those of the study."""
    batch_size: int = 64
    """Rows at once, from 1 up."""
    device: str = "auto"
    """`auto`, `cpu`, `mps`, `cuda` or `cuda:N`."""
    encoding: str = "utf-8"
    """Text encoding of CSV, TSV, JSON and txt files."""
    probabilities: bool = False
    """Whether the probability of every class is written, in `probability/LABEL`."""
    trust_remote_code: bool = False
    """Whether code that lies with the model may run; what the folder itself says does not count."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.batch_size < 1:
            raise UsageError(f"--batch-size: `{self.batch_size}` is not accepted; from 1 up.")
        try:
            checks.device("device", self.device)
        except checks.FieldError as error:
            raise UsageError(f"--device: {error.message}") from error


def predict_file(
    model_folder: Path,
    file: Path,
    *,
    to: Path | None = None,
    force: bool = False,
    options: PredictOptions = PredictOptions(),
) -> int:
    """Predict the rows of a file and write them with label and score.

    Args:
        model_folder: What `export` wrote, or its folder `model`.
        file: The rows.
        to: Where to write, by its ending; None writes CSV to standard output.
        force: Whether a file that is there already may be replaced.
        options: How.

    Returns:
        The number of rows.

    Raises:
        ExportError: The folder holds no exported model, or `to` may not be replaced.
        DataError: The file cannot be read, or lacks a column.
        UsageError: The device is not there, or the model needs code that is not trusted.
    """
    folder, about = _find_model(model_folder)
    if to is not None:
        check_ending(to)
        _check_target(to, file, force=force)
    columns = options.text or tuple(about["text"])
    if len(columns) != len(about["text"]):
        raise UsageError(
            f"--text: the model reads {len(about['text'])} text column(s), but {len(columns)} are"
            f" given ({', '.join(columns)})."
        )
    table = read_rows(file, encoding=options.encoding, text_column=columns[0])
    texts = texts_of(table, columns, str(file))
    known = [row for row, text in enumerate(texts) if any(part.strip() for part in text)]
    labels, scores = _scores(folder, [texts[row] for row in known], options)
    new = _columns(labels, scores, known, len(texts), options)
    write_rows(with_columns(table, new, str(file)), to, sys.stdout)
    return len(texts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Args:
        arguments: What follows the program's name; None takes `sys.argv`.

    Returns:
        The exit code: 0, or that of the error.
    """
    given = _parser().parse_args(arguments)
    try:
        options = PredictOptions(
            text=tuple(given.text or ()),
            batch_size=given.batch_size,
            device=given.device,
            encoding=given.encoding,
            probabilities=given.probabilities,
            trust_remote_code=given.trust_remote_code,
        )
        num_rows = predict_file(
            given.model, given.file, to=given.to, force=given.force, options=options
        )
    except AutomlFtError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    where = "" if given.to is None else f" to {given.to}"
    print(f"Predicted {num_rows} rows{where}.", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="automl-ft predict",
        description="Write the label and score that an exported model gives to each row of a file.",
        epilog="example: automl-ft predict best/ new.csv --to predictions.csv",
    )
    parser.add_argument("model", type=Path, help="what `export` wrote, or its folder `model`")
    parser.add_argument("file", type=Path, help="CSV, TSV, JSON, JSONL, Parquet, Arrow or txt")
    parser.add_argument("--to", type=Path, help="csv, tsv, jsonl or parquet file; else CSV here")
    parser.add_argument("--force", action="store_true", help="replace the file of --to")
    parser.add_argument("--text", action="append", help="text column; twice for sentence pairs")
    parser.add_argument("--batch-size", type=int, default=64, help="rows at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    parser.add_argument("--encoding", default="utf-8", help="text encoding of the file")
    parser.add_argument(
        "--probabilities", action="store_true", help="also the probability of every class"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that lies with the model"
    )
    return parser


def _check_target(to: Path, file: Path, *, force: bool) -> None:
    """Keep the rows themselves, and what else is there unless it may be replaced."""
    if not to.exists():
        return
    if file.exists() and to.samefile(file):
        raise ExportError(
            f"--to: `{to}` is the file of the rows itself, which is never replaced. Give another"
            " file."
        )
    if not to.is_file():
        raise ExportError(f"--to: `{to}` is no file. Give a file that is new.")
    if not force:
        raise ExportError(
            f"--to: the file `{to}` exists. Give another one, or --force to replace it."
        )


def _find_model(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the model in an export, or in the folder itself, and read what it is about."""
    for place in (folder, folder / "model"):
        if (place / ABOUT).is_file() and (place / "config.json").is_file():
            try:
                about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
                return place, {**about, "text": list(about["text"])}
            except (ValueError, KeyError, TypeError) as error:
                raise ExportError(
                    f"`{place / ABOUT}` cannot be read: {error!r}. Export the model again."
                ) from error
    what = "holds no exported model" if folder.is_dir() else "does not exist"
    raise ExportError(
        f"`{folder}` {what} (no `{ABOUT}`). Give the folder that `automl-ft export` wrote."
    )


def _scores(
    folder: Path, texts: Sequence[tuple[str, ...]], options: PredictOptions
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the classes, and the probability of each for each text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from automl_ft.export.scoring import logits_of_texts
    from automl_ft.models.quiet import quiet
    from automl_ft.trial.precision import pick_device

    device = pick_device(options.device)
    trust = options.trust_remote_code
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust
            )
    except (OSError, ValueError, ImportError) as error:
        if not trust and "trust_remote_code" in str(error):
            raise UsageError(
                f"The model in `{folder}` needs code that is no part of transformers and lies with"
                " the model. Read that code; if you trust it, give --trust-remote-code."
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"The model in `{folder}` cannot be loaded: {reason}") from error
    model.to(device)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    logits = logits_of_texts(model, tokenizer, texts, batch_size=options.batch_size)
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return labels, shifted / shifted.sum(axis=1, keepdims=True)


def _columns(
    labels: Sequence[str],
    scores: npt.NDArray[np.float64],
    known: Sequence[int],
    num_rows: int,
    options: PredictOptions,
) -> dict[str, pa.Array]:
    """Return the new columns in the order of the file; rows without text hold None."""
    best = scores.argmax(axis=1)
    columns = {
        LABEL: _spread([labels[index] for index in best], known, num_rows, pa.string()),
        SCORE: _spread(scores.max(axis=1).tolist(), known, num_rows, pa.float64()),
    }
    if options.probabilities:
        for number, label in enumerate(labels):
            values = scores[:, number].tolist()
            columns[f"probability/{label}"] = _spread(values, known, num_rows, pa.float64())
    return columns


def _spread(values: Sequence[Any], known: Sequence[int], num_rows: int, kind: Any) -> pa.Array:
    spread: list[Any] = [None] * num_rows
    for row, value in zip(known, values, strict=True):
        spread[row] = value
    return pa.array(spread, type=kind)


if __name__ == "__main__":
    sys.exit(main())
