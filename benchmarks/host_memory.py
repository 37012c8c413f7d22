"""How much host memory does a search on 100,000 rows of 128 tokens take at its peak?

A whole search of one trial (reading a CSV file, cleaning, splitting, encoding, an epoch with its
validations, checkpoints) runs as on the command line: a supervisor and a worker. Both are watched
200 times a second. Counted is anonymous memory, `RssAnon` of `/proc/PID/status`: what Python, torch
and NumPy allocate, tensors of the model and activations among it. Not counted are pages of mapped
files (encoded rows, weights as they lie on disk, shared libraries), which the system may drop at
any time. The model is by default an untrained one of two tiny layers, so that what the data cost is
seen; one copy of its weights is taken off the sum. The last line is JSON.

    python benchmarks/host_memory.py --quick
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from automl_ft.files.child import child_command, child_environment

LIMIT_MIB = 4096
NUM_WORDS = 20_000
MIB = 2**20
PAUSE_SECONDS = 0.005


@dataclass(kw_only=True, slots=True)
class Peak:
    """The most memory that was seen in one phase of the search, in MiB."""

    supervisor: float = 0.0
    """Of the process that was started."""
    worker: float = 0.0
    """Of its children together."""
    total: float = 0.0
    """Of all at one moment."""


@dataclass(kw_only=True, slots=True)
class Watch:
    """What is known of a running search."""

    peaks: dict[str, Peak] = field(default_factory=dict)
    """Peak by phase: `set-up`, then `trial`."""
    phase: str = "set-up"
    """The phase now."""
    lines: list[str] = field(default_factory=list)
    """What the search said."""


def main() -> None:
    """Measure, print the peak of each process and phase, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files lie; default: a temporary one")
    parser.add_argument("--rows", type=int, default=100_000, help="rows (default 100000)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row (default 128)")
    parser.add_argument("--model", help="a checkpoint; default: two tiny layers, built here")
    parser.add_argument("--timeout", default="2h", help="when the trial is paused (default 2h)")
    parser.add_argument("--quick", action="store_true", help="10,000 rows")
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("it reads /proc, which this system does not have; run it on Linux")
    if options.quick:
        options.rows = 10_000
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options)
    print_result(result)
    sys.exit(0 if result["is_within"] else 1)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make rows and model, search, and watch.

    Args:
        folder: Where the files lie.
        options: Of the command line.

    Returns:
        The figures.
    """
    chance = random.Random(0)
    words = write_rows(folder / "rows.csv", options.rows, options.tokens, chance)
    model = options.model or str(write_model(folder / "model", words, options.tokens))
    study = write_study(folder, model, options)
    began = time.monotonic()
    watch = run_search(study)
    seconds = time.monotonic() - began
    weights = weights_mib(watch)
    peaks = watch.peaks.values()
    total = max(peak.total for peak in peaks)
    return {
        "rows": options.rows,
        "tokens_per_row": options.tokens,
        "model": options.model or "tiny",
        "supervisor_mib": round(max(peak.supervisor for peak in peaks)),
        "worker_mib": round(max(peak.worker for peak in peaks)),
        "set_up_mib": round(watch.peaks["set-up"].total),
        "trial_mib": round(watch.peaks["trial"].total),
        "weights_mib": round(weights, 1),
        "besides_model_mib": round(total - weights),
        "limit_mib": LIMIT_MIB,
        "is_within": total - weights <= LIMIT_MIB,
        "seconds": round(seconds, 1),
    }


def write_rows(path: Path, num_rows: int, num_tokens: int, chance: random.Random) -> list[str]:
    """Write random rows of a fixed length in words; one word tells the label.

    Args:
        path: The file.
        num_rows: How many.
        num_tokens: Tokens of each, the two special ones included.
        chance: Draws the words.

    Returns:
        All words.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    found: set[str] = set()
    while len(found) < NUM_WORDS:
        found.add("".join(chance.choices(letters, k=chance.randint(3, 9))))
    words = sorted(found)
    labels = ("news", "sport", "music", "trade")
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in range(num_rows):
            label = row % len(labels)
            drawn = chance.choices(words, k=num_tokens - 3)
            file.write(f"{' '.join([words[label], *drawn])},{labels[label]}\n")
    return words


def write_model(folder: Path, words: list[str], num_tokens: int) -> Path:
    """Save an untrained BERT of two tiny layers with a tokenizer of whole words.

    Args:
        folder: Where.
        words: The vocabulary.
        num_tokens: Positions.

    Returns:
        The folder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from automl_ft.models.quiet import quiet

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    numbers = {word: number for number, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{token.strip('[]').lower()}_token": token for token in special}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(numbers),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=num_tokens,
    )
    with quiet():
        BertModel(config).save_pretrained(folder)
    return folder


def write_study(folder: Path, model: str, options: argparse.Namespace) -> Path:
    """Write a study of one trial of one epoch, on one thread.

    Args:
        folder: Where everything of it lies.
        model: Its checkpoint.
        options: Of the command line.

    Returns:
        The file.
    """
    study = {
        "name": "host-memory",
        "model": model,
        "data": {
            "path": str(folder / "rows.csv"),
            "max_length": options.tokens if options.model else "auto",
        },
        "space": {"learning_rate": 1e-3, "batch_size": 32, "epochs": 1},
        "pruner": "none",
        "device": "cpu",
        "budget": {"trials": 1, "timeout": options.timeout},
        "training": {"threads": 1},
        "storage": f"sqlite:///{folder}/studies.db",
        "output": str(folder / "study"),
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def run_search(study: Path) -> Watch:
    """Search, and watch memory until the end.

    Args:
        study: The study file.

    Returns:
        What was seen.

    Raises:
        SystemExit: The search failed; with what it said.
    """
    command = [*child_command("automl_ft.cli.main"), "search", str(study)]
    cache = {"AUTOML_FT_CACHE": str(study.parent / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**child_environment(), **cache, "TOKENIZERS_PARALLELISM": "false"},
    )
    watch = Watch()
    assert process.stderr is not None
    reader = threading.Thread(target=listen, args=(process.stderr, watch))
    reader.start()
    while process.poll() is None:
        look(process.pid, watch)
        time.sleep(PAUSE_SECONDS)
    reader.join()
    if process.returncode != 0 or "trial" not in watch.peaks:
        raise SystemExit("\n".join([*watch.lines, f"the search ended with {process.returncode}"]))
    return watch


def listen(stream: IO[str], watch: Watch) -> None:
    """Keep what a search says, and tell its phases apart.

    Args:
        stream: Its stderr.
        watch: Is told.
    """
    for line in stream:
        watch.lines.append(line.rstrip())
        if "trial 0 started" in line:
            watch.phase = "trial"


def look(supervisor: int, watch: Watch) -> None:
    """Read the memory of a process and its children once.

    Args:
        supervisor: The process.
        watch: Keeps the peaks.
    """
    peak = watch.peaks.setdefault(watch.phase, Peak())
    own = anonymous_mib(supervisor)
    workers = sum(map(anonymous_mib, children_of(supervisor)))
    peak.supervisor = max(peak.supervisor, own)
    peak.worker = max(peak.worker, workers)
    peak.total = max(peak.total, own + workers)


def children_of(process: int) -> list[int]:
    """Return the children of all threads of a process, and theirs.

    Args:
        process: Its id.

    Returns:
        Their ids.
    """
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text(encoding="ascii").split()):
                found += [child, *children_of(child)]
    return found


def anonymous_mib(process: int) -> float:
    """Return the anonymous memory of a process.

    Args:
        process: Its id.

    Returns:
        MiB; 0 for one that has ended.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / MIB
    return 0.0


def weights_mib(watch: Watch) -> float:
    """Return the size of one fp32 copy of the model, from what the search told of it.

    Args:
        watch: Holds the line `model: ... (bert, 2 layers, 0.7 M parameters), ...`.

    Returns:
        MiB.
    """
    line = next(line for line in watch.lines if "M parameters" in line)
    millions = line.split(" M parameters")[0].rpartition(" ")[2]
    return float(millions) * 1e6 * 4 / MIB


def print_result(result: dict[str, Any]) -> None:
    """Print the figures, and all of them as JSON.

    Args:
        result: What `measure` returns.
    """
    print(f"{result['rows']} rows of {result['tokens_per_row']} tokens, {result['seconds']:.0f} s")
    for name in ("supervisor", "worker", "set_up", "trial", "besides_model"):
        print(f"{name.replace('_', ' ') + ':':15} {result[f'{name}_mib']:6d} MiB at the peak")
    word = "within" if result["is_within"] else "ABOVE"
    print(f"{word} the limit of {result['limit_mib']} MiB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
