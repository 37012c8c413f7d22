"""How much faster is a list of trials here than with Trainer.hyperparameter_search, at equal F1?

Both sides run the same six configurations of the same rows, tokens, updates and seeds, in turn;
each repeat has a seed of its own and starts with empty caches. Loading libraries, tokenising and
starting processes are outside the timing of both sides. The last line is JSON.

    python benchmarks/against_trainer.py --quick --data-set r8
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring.arguments import make_parser, print_json, settle, sizes_of, write_large_model
from measuring.engine import Session, Setting, Timed, final_f1, memory_of, setting_of
from measuring.figures import compare_f1, compare_seconds, show_ratio, spread
from measuring.incumbent import Found, Incumbent, IncumbentSetting
from measuring.machine import describe_machine
from measuring.recipes import LIST, of_part
from measuring.rows import BenchData, MissingDataError, write_rows

from automl_ft.specs.trial import TrialResult
from automl_ft.trial.prepare import prepare_study

ALONE = (
    ("head_cold", "head"),
    ("head_warm", "head"),
    ("full", "full"),
    ("half_cold", "half"),
    ("half_warm", "half"),
)
"""Single configurations, in the order in which they fill the caches."""
TOGETHER = (("full", "full"), ("half_cold", "half"), ("half_warm", "half"))
"""All configurations of a part at once, one to a worker, where there are several workers."""


@dataclass(kw_only=True, slots=True)
class Record:
    """What one model on one data set showed, repeat by repeat."""

    found: dict[str, list[Found]] = field(default_factory=dict)
    """The other side's lists, by `best` and `plain`."""
    lists: dict[int, list[Timed]] = field(default_factory=dict)
    """Our lists, by number of workers."""
    alone: dict[str, list[Timed]] = field(default_factory=dict)
    """Our single configurations, by their names in `ALONE`."""
    together: dict[str, list[Timed]] = field(default_factory=dict)
    """All configurations of one part, by their names in `TOGETHER` and the number of workers."""
    setup_seconds: list[float] = field(default_factory=list)
    """From the start of our processes until they could run trials."""


def main() -> None:
    """Measure every data set and model that is asked for, and print it all."""
    options = parse(sys.argv[1:])
    settle(options, (64, 32, 1))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = itertools.product(options.models, dict.fromkeys(options.data_set))
        for number, (model, name) in enumerate(pairs):
            place = Path(folder) / str(number)
            place.mkdir()
            try:
                data = load(name, place, options)
            except MissingDataError as error:
                print(f"skipped: {error}", flush=True)
                continue
            results.append(compare(write_large_model(model, place), data, place, options))
            results[-1] |= {"data_set": name, "model": model}
    machine = describe_machine(options.device)
    print_json({"machine": machine, "sizes": sizes_of(options), "results": results})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Args:
        arguments: The command line without the script.

    Returns:
        The options.
    """
    parser = make_parser(__doc__)
    parser.set_defaults(model=None)
    add = parser.add_argument
    add("--data-set", nargs="+", default=["r8"], help="r8, sst2, trec6, or another folder")
    add("--workers", type=int, nargs="+", default=[1, 2], help="our worker processes, each in turn")
    add("--eval-batch-size", type=int, default=64, help="of the other side")
    for flag in ("--trainer-bf16", "--trainer-group-by-length"):
        add(flag, default="auto", choices=["auto", "yes", "no"], help="auto takes the faster")
    add(
        "--trainer-compile",
        default="auto",
        choices=["auto", "yes", "no"],
        help="torch.compile; auto takes the faster on a GPU, and goes without on a CPU,"
        " where it was slower (docs/experiments.md)",
    )
    add("--no-plain", action="store_true", help="do not run the other side in its plain setting")
    options = parser.parse_args(arguments)
    large = ["bert-base-random"] if options.device.startswith("cuda") else []
    options.workers = list(dict.fromkeys(options.workers))
    options.models = [options.model] if options.model else ["minilm-l6", *large]
    return options


def load(name: str, folder: Path, options: argparse.Namespace) -> BenchData:
    """Draw the rows of a data set.

    Args:
        name: The data set.
        folder: Where the files go.
        options: The command line.

    Returns:
        The files.

    Raises:
        MissingDataError: It is not here.
    """
    sizes = (options.train_rows, options.validation_rows)
    return write_rows(name, folder, sizes, options.data_folder, options.wheel)


def compare(
    checkpoint: str, data: BenchData, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Run both sides in turn.

    Args:
        checkpoint: The model.
        data: The rows.
        folder: For our studies.
        options: The command line.

    Returns:
        The figures.
    """
    setting = setting_of(options, checkpoint, data)
    study = prepare_study(setting.config(), (checkpoint,), None)
    incumbent = Incumbent(study, options.epochs)
    probes = probe(incumbent, options)
    theirs = {"best": min(probes, key=lambda choice: probes[choice])}
    plain = IncumbentSetting(eval_batch_size=options.eval_batch_size)
    if not options.no_plain and theirs["best"] != plain:
        theirs["plain"] = plain
    record = Record()
    for repeat in range(options.repeats):
        # The first side of a repeat is the last one of the next.
        order = ["ours", *theirs] if repeat % 2 else [*theirs, "ours"]
        for side in order:
            if side == "ours":
                run_ours(record, setting, folder / str(repeat), options.workers)
            else:
                found = incumbent.search(LIST, theirs[side], repeat)
                record.found.setdefault(side, []).append(found)
        print(f"{data.name}: repeat {repeat + 1} of {options.repeats} is done", flush=True)
    tokens = {name: split.num_tokens for name, split in study.checkpoint(None).splits.items()}
    examples = options.epochs * len(study.checkpoint(None).splits["train"])
    figures = summarise(record, examples) | {
        "tokens": tokens,
        "precision": study.facts.precision,
        "trainer_settings": {
            name: {field: getattr(choice, field) for field in choice.__slots__}
            for name, choice in theirs.items()
        },
        "trainer_probe_seconds": {describe(choice): probes[choice] for choice in probes},
    }
    show(f"{data.name}, {Path(checkpoint).name}", figures)
    return figures


def probe(incumbent: Incumbent, options: argparse.Namespace) -> dict[IncumbentSetting, float]:
    """Time the settings that a careful user of the other side would try, where there is a choice.

    Args:
        incumbent: The other side.
        options: The command line.

    Returns:
        Seconds by setting; zero where there was no choice.
    """
    answers = {"auto": (False, True), "yes": (True,), "no": (False,)}
    is_cpu = options.device == "cpu"
    compiling = "no" if is_cpu and options.trainer_compile == "auto" else options.trainer_compile
    choices = [
        IncumbentSetting(
            bf16=bf16,
            group_by_length=group,
            compile=is_compiled,
            eval_batch_size=options.eval_batch_size,
        )
        for bf16 in answers[options.trainer_bf16]
        for group in answers[options.trainer_group_by_length]
        for is_compiled in answers[compiling]
    ]
    if len(choices) == 1:
        return {choices[0]: 0.0}
    return incumbent.probe(of_part("full"), choices)


def describe(choice: IncumbentSetting) -> str:
    """Name a setting of the other side in a few words.

    Args:
        choice: The setting.

    Returns:
        Such as `bf16, grouped by length`.
    """
    words = ["bf16" if choice.bf16 else "fp32"]
    words += ["grouped by length"] * choice.group_by_length + ["compiled"] * choice.compile
    return ", ".join(words)


def run_ours(record: Record, setting: Setting, folder: Path, workers: Sequence[int]) -> None:
    """Run the list with each number of workers, and each part alone.

    Args:
        record: Takes the results in.
        setting: What trials share.
        folder: For the studies of this repeat; its name is the seed.
        workers: Numbers of worker processes.
    """
    seed = int(folder.name)
    for count in workers:
        with Session(setting, folder / f"list-{count}", count) as session:
            record.lists.setdefault(count, []).append(session.run_list(LIST, seed))
            record.setup_seconds.append(session.setup_seconds)
    with Session(setting, folder / "alone") as session:
        for name, part in ALONE:
            timed = session.run_one(of_part(part), seed)
            record.alone.setdefault(name, []).append(timed)
    for count in (count for count in workers if count > 1):
        with Session(setting, folder / f"together-{count}", count) as session:
            for name, part in TOGETHER:
                timed = session.run_list([c for c in LIST if c.part == part], seed)
                record.together.setdefault(named(name, count), []).append(timed)


def named(name: str, workers: int) -> str:
    """Name a figure of some workers.

    Args:
        name: What they ran.
        workers: How many they are.

    Returns:
        Such as `list_2_workers`.
    """
    return f"{name}_{workers}_worker{'s' * (workers > 1)}"


def check_examples(record: Record, examples: int) -> None:
    """Refuse a comparison of trials that did not do the same work.

    Args:
        record: All repeats.
        examples: Training rows of a trial, over all epochs.

    Raises:
        RuntimeError: A trial of ours saw more or fewer.
    """
    for timed in (t for runs in record.lists.values() for t in runs):
        for result in timed.results:
            if result.cost.examples != examples:
                raise RuntimeError(
                    f"Trial {result.number} saw {result.cost.examples} rows instead of {examples}."
                )


def summarise(record: Record, examples: int) -> dict[str, Any]:
    """Turn runs into figures.

    Args:
        record: All repeats.
        examples: Training rows of a trial, over all epochs.

    Returns:
        By setting of the other side ratios and scores; speeds, memory and updates.
    """
    first = next(iter(record.lists.values()))
    ours = [[final_f1(result) for result in timed.results] for timed in first]
    seconds = {
        **{f"trainer_{name}": [run.seconds for run in runs] for name, runs in record.found.items()},
        **{f"ours_{count}": [run.seconds for run in runs] for count, runs in record.lists.items()},
    }
    best = record.found["best"]
    check_examples(record, examples)
    return {
        "against": {
            name: {
                "ratios": ratios(record, found),
                "f1": compare_f1(ours, [[trial.f1 for trial in run.trials] for run in found]),
            }
            for name, found in record.found.items()
        },
        "trials_per_hour": {
            side: 3600 * len(LIST) * len(times) / sum(times) for side, times in seconds.items()
        },
        "trial_seconds": {
            "ours": [[result.cost.seconds for result in timed.results] for timed in first],
            "trainer": [[trial.seconds for trial in run.trials] for run in best],
        },
        "validation_share": validation_share(first),
        "memory": memory(first[-1].results, best[-1]),
        "updates": [trial.updates for trial in best[-1].trials],
        "setup_seconds": record.setup_seconds,
    }


def validation_share(lists: Sequence[Timed]) -> dict[str, dict[str, float]]:
    """Say how much of a trial's time validation took, once an epoch.

    Args:
        lists: Our lists, repeat by repeat.

    Returns:
        Where the shares of each part's trials lie, in [0, 1], and that of `all` together.
    """
    found: dict[str, list[float]] = {"all": []}
    for timed in lists:
        costs = [result.cost for result in timed.results]
        total = sum(cost.seconds_validating or 0.0 for cost in costs)
        found["all"].append(total / sum(cost.seconds for cost in costs))
        for configuration, cost in zip(LIST, costs, strict=True):
            share = (cost.seconds_validating or 0.0) / cost.seconds
            found.setdefault(configuration.part, []).append(share)
    return {part: spread(shares) for part, shares in found.items()}


def ratios(record: Record, found: Sequence[Found]) -> dict[str, Any]:
    """Compare our times with those of one setting of the other side.

    Args:
        record: All repeats.
        found: The other side's lists.

    Returns:
        Comparisons by `list_N_worker(s)`, the names in `ALONE`, and those in `TOGETHER` with the
        number of workers, of seconds a trial.
    """
    theirs = [run.seconds for run in found]
    result = {
        named("list", count): compare_seconds([timed.seconds for timed in runs], theirs)
        for count, runs in record.lists.items()
    }
    for name, part in ALONE:
        ours = [timed.seconds for timed in record.alone[name]]
        result[name] = compare_seconds(ours, their_seconds(found, part))
    parts = dict(TOGETHER)
    for key, runs in record.together.items():
        part = parts[next(name for name in parts if key.startswith(f"{name}_"))]
        each = [timed.seconds / len(timed.results) for timed in runs]
        result[key] = compare_seconds(each, their_seconds(found, part))
    return result


def their_seconds(found: Sequence[Found], part: str) -> list[float]:
    """Return what one configuration of a part took the other side, in each repeat.

    Args:
        found: Its lists.
        part: `head`, `half` or `full`.

    Returns:
        The mean seconds over the part's configurations.
    """
    wanted = [index for index, configuration in enumerate(LIST) if configuration.part == part]
    return [sum(run.trials[index].seconds for index in wanted) / len(wanted) for run in found]


def memory(results: Sequence[TrialResult], found: Found) -> list[dict[str, Any]]:
    """Set what each trial took beside its forecast and what the other side took.

    Args:
        results: Ours, of the last repeat.
        found: The other side's.

    Returns:
        MiB by configuration. Resident size of the worker on a CPU, where the other side's is not
        measured; the allocator's peak on a GPU.
    """
    return [
        {"part": configuration.part, **memory_of(result), "trainer_peak_mib": trial.peak_memory_mib}
        for configuration, result, trial in zip(LIST, results, found.trials, strict=True)
    ]


def show(title: str, figures: dict[str, Any]) -> None:
    """Print the figures of one data set for people.

    Args:
        title: What was measured.
        figures: From `compare`.
    """
    for setting, figure in figures["against"].items():
        choice = figures["trainer_settings"][setting]
        print(f"\n{title}: ours against Trainer.hyperparameter_search, {setting}: {choice}")
        for name, comparison in figure["ratios"].items():
            print("  " + show_ratio(name, comparison))
        f1 = figure["f1"]
        print(f"  macro F1 {f1['ours']:.4f} against {f1['theirs']:.4f}", end="")
        if f1["interval_95"] is not None:
            low, high = f1["interval_95"]
            print(f": difference {f1['difference']:+.4f} ({low:+.4f} to {high:+.4f}, 95 %)", end="")
            print(f", between seeds {f1['seed_spread']:.4f}", end="")
        print()
    shares = figures["validation_share"].items()
    told = ", ".join(f"{part} {100 * share['median']:.1f} %" for part, share in shares)
    print(f"  validation's share of our trials: {told}")
    hours = figures["trials_per_hour"].items()
    print("  trials an hour: " + ", ".join(f"{side} {rate:.0f}" for side, rate in hours))


if __name__ == "__main__":
    main()
