"""Which share of the machine's matrix speed does full fine-tuning reach, on real tokens?

The peak is the fastest of several large matrix products, each at the median of its calls; the
products of the model's own shapes are shown beside it. Then an epoch of full fine-tuning is timed,
its first epoch apart. Both are measured in turn. The last line is JSON.

    python benchmarks/floor.py --quick --data-set r8
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring.arguments import make_parser, print_json, settle, sizes_of, write_large_model
from measuring.engine import open_here, setting_of
from measuring.figures import spread
from measuring.flops import Shape, epoch_flops, needed_flops, shape_of
from measuring.machine import describe_machine
from measuring.recipes import of_part
from measuring.rows import MissingDataError, write_rows

from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.trial import Outcome
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import run_trial

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LARGE = {"cpu": ((1024, 1024, 1024), (1536, 1536, 1536), (2048, 2048, 2048))}
LARGE["cuda"] = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192))
"""Rows, input width and output width of the products that measure the peak."""
Product = tuple[int, int, int]


@dataclass(kw_only=True, slots=True)
class EpochClock:
    """A reporter that times the training steps of each epoch, without its validation."""

    device: torch.device
    """Where the trial runs; waited for at the end of an epoch."""
    num_rows: int
    """Training rows of an epoch."""
    seconds: list[float] = field(default_factory=list)
    """Of each epoch but the first, which warms up."""
    _began: float | None = None
    _ended: float = 0.0

    def progress(self, progress: Progress) -> Decision:
        """Note the time after each step.

        Args:
            progress: How far the trial is.

        Returns:
            CONTINUE.
        """
        if progress.examples_seen % self.num_rows == 0 and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._ended = time.perf_counter()
        return Decision.CONTINUE

    def report(self, evaluation: Evaluation) -> Decision:
        """Close an epoch; the next one begins when this returns.

        Args:
            evaluation: The validation at the end of the epoch.

        Returns:
            CONTINUE.
        """
        if self._began is not None:
            self.seconds.append(self._ended - self._began)
        self._began = time.perf_counter()
        return Decision.CONTINUE


def main() -> None:
    """Measure both in turn, and print shares and peaks."""
    options = parse(sys.argv[1:])
    settle(options, (320, 80, 2))
    options.epochs = max(options.epochs, 2)
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = measure(Path(folder), options)
        except MissingDataError as error:
            sys.exit(f"skipped: {error}")
    show(figures)
    machine = describe_machine(options.device)
    print_json({"machine": machine, "sizes": sizes_of(options), **figures})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Args:
        arguments: The command line without the script.

    Returns:
        The options.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--data-set", default="r8", help="r8, sst2, trec6, or another folder")
    parser.add_argument(
        "--call-seconds", type=float, default=1.0, help="how long each product is repeated"
    )
    return parser.parse_args(arguments)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure peaks and epochs in turn.

    Args:
        folder: For rows and the study.
        options: The command line.

    Returns:
        The figures.

    Raises:
        MissingDataError: The data set is not here.
    """
    study = open_benchmark_study(folder, options)
    opened = study.checkpoint(None)
    lengths = opened.splits["train"].lengths
    shape = shape_of(study.load_model(opened, dropout=None, seed=0))
    products = {"large": LARGE[study.device.type], "model": model_products(shape, lengths)}
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in DTYPES}
    epochs: list[float] = []
    for repeat in range(options.repeats):
        for precision in DTYPES:
            for product in {*products["large"], *products["model"]}:
                speed = time_product(product, DTYPES[precision], study.device, options.call_seconds)
                speeds[precision].setdefault(str(product), []).append(speed)
        epochs.append(statistics.median(time_epochs(study, folder / str(repeat), repeat, options)))
    counts = {"plain": epoch_flops(shape, lengths), "needed": needed_flops(shape, lengths)}
    peaks = {
        precision: max(statistics.median(speeds[precision][str(p)]) for p in products["large"])
        for precision in DTYPES
    }
    return {
        "precision": study.facts.precision,
        "tokens": int(lengths.sum()),
        "epoch_seconds": epochs,
        "epoch_gflop": {name: count / 1e9 for name, count in counts.items()},
        "peak_gflops": peaks,
        "gflops": {name: {p: spread(v) for p, v in speeds[name].items()} for name in DTYPES},
        "share": {
            f"{name}_of_{precision}_peak": spread([count / 1e9 / s / peak for s in epochs])
            for name, count in counts.items()
            for precision, peak in peaks.items()
        },
    }


def open_benchmark_study(folder: Path, options: argparse.Namespace) -> PreparedStudy:
    """Prepare a study of full fine-tuning in this process.

    Args:
        folder: For rows and the study.
        options: The command line.

    Returns:
        The study, its rows mapped from disk as in a worker.

    Raises:
        MissingDataError: The data set is not here.
    """
    sizes = (options.train_rows, options.validation_rows)
    data = write_rows(options.data_set, folder, sizes, options.data_folder, options.wheel)
    model = write_large_model(options.model, folder)
    return open_here(setting_of(options, model, data), folder / "study")


def model_products(shape: Shape, lengths: Any) -> tuple[Product, ...]:
    """Return the products of one batch of 16 rows, its tokens rounded up to 32.

    Args:
        shape: The model's.
        lengths: Tokens of each row.

    Returns:
        Rows, input width and output width of each.
    """
    tokens = -(-int(16 * lengths.mean()) // 32) * 32
    return tuple((tokens, inner, outer) for outer, inner in shape.linear_shapes)


def time_product(
    product: Product, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    """Time the product of a linear layer again and again.

    Args:
        product: Rows, input width and output width.
        dtype: Of both factors.
        device: Where.
        seconds: How long to go on, for three calls at least.

    Returns:
        Median speed in GFLOP/s.
    """
    rows, inner, outer = product
    inputs = torch.randn(rows, inner, device=device).to(dtype)
    weights = torch.randn(outer, inner, device=device).to(dtype)
    times: list[float] = []
    with torch.inference_mode():
        torch.nn.functional.linear(inputs, weights)  # the first call makes the kernel
        until = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < until:
            _wait(device)
            began = time.perf_counter()
            torch.nn.functional.linear(inputs, weights)
            _wait(device)
            times.append(time.perf_counter() - began)
    return 2.0 * rows * inner * outer / statistics.median(times) / 1e9


def time_epochs(
    study: PreparedStudy, folder: Path, seed: int, options: argparse.Namespace
) -> list[float]:
    """Fine-tune the whole model.

    Args:
        study: The open study.
        folder: The trial's folder.
        seed: The trial's seed.
        options: The command line.

    Returns:
        Seconds of training of each epoch but the first.
    """
    num_layers = study.checkpoint(None).facts.num_layers
    spec = of_part("full").spec(seed, num_layers, epochs=options.epochs, seed=seed, folder=folder)
    clock = EpochClock(device=study.device, num_rows=len(study.checkpoint(None).splits["train"]))
    result = run_trial(spec, study, clock)
    if result.outcome is not Outcome.COMPLETE:
        raise RuntimeError(f"The trial ended as {result.outcome}: {result.failure}")
    return clock.seconds


def show(figures: dict[str, Any]) -> None:
    """Print peaks and shares for people.

    Args:
        figures: From `measure`.
    """
    for precision, peak in figures["peak_gflops"].items():
        print(f"peak in {precision}: {peak:.0f} GFLOP/s")
        for product, speed in figures["gflops"][precision].items():
            print(f"  {product:22} {speed['median']:8.0f} ({speed['low']:.0f}-{speed['high']:.0f})")
    seconds = statistics.median(figures["epoch_seconds"])
    print(f"an epoch of full fine-tuning in {figures['precision']}: {seconds:.2f} s")
    for name, share in figures["share"].items():
        low, high = share["low"], share["high"]
        print(f"  {name:24} {share['median']:6.1%} ({low:.1%} to {high:.1%})")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
