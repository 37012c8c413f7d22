"""What does a search say, in words? Sentences that the live view and the plain lines share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from automl_ft.cli.values import difference, duration, number, params_line, plural, score
from automl_ft.config.duration import format_duration
from automl_ft.search.events import RunningTrial, SearchSnapshot, trial_names
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.trial import Outcome, ParamValue, TrialResult
from automl_ft.specs.validation import written_validations

__all__ = [
    "best_line",
    "budget_line",
    "counts_line",
    "ended_line",
    "facts_lines",
    "group_line",
    "is_new_best",
    "running_groups",
    "running_trial",
    "seconds_left",
    "written_training",
]

_PRECISIONS = {
    "fp32": "fp32",
    "tf32": "tf32, validation in fp32",
    "bf16": "bf16 with fp32 parameters, validation with the classes of fp32",
}
_BATCHES = {
    "packed": "rows packed end to end, without padding",
    "bucketed": "rows of similar length padded together",
}
_FINISHED = ("complete", "pruned", "failed")


def facts_lines(facts: StudyFacts, *, is_resumed: bool) -> list[str]:
    """Tell what preparing found out about data and models.

    Args:
        facts: The facts.
        is_resumed: Whether the study existed before.

    Returns:
        Lines `word: text`: the data, each checkpoint, the device, the study, each note on the data,
        and each shortcut of the training engine that a model does not allow.
    """
    data = facts.data
    rows = [f"{number(n)} {split}" for split, n in data.num_examples.items() if n]
    lines = [f"data: {', '.join(rows)} rows; {_classes(data.labels)}"]
    for model in facts.checkpoints:
        cut = f" ({plural(model.num_truncated, 'row')} cut)" if model.num_truncated else ""
        lines.append(
            f"model: {model.checkpoint} ({model.architecture}, {plural(model.num_layers, 'layer')},"
            f" {model.num_parameters / 1e6:.1f} M parameters), {model.max_length} tokens{cut}"
        )
    lines.append(f"device: {facts.device}")
    lines.append(f"training: {written_training(facts)}")
    lines.append(f"validation: {written_validations(facts.validations_per_epoch)}")
    lines.append("study: exists and goes on" if is_resumed else "study: new")
    notes = [note.message for note in data.notes]
    notes += dict.fromkeys(text for model in facts.checkpoints for text in model.fallbacks)
    return lines + [f"note: {note}" for note in notes]


def written_training(facts: StudyFacts) -> str:
    """Say how trials compute, as the settings came out.

    Args:
        facts: The facts.

    Returns:
        Such as `fp32; rows packed end to end, without padding`; of each model where they differ.
    """
    ways = {
        model.checkpoint: f"{_PRECISIONS[facts.precision_of(model)]}; {_BATCHES[model.batching]}"
        + ("; steps recorded as CUDA graphs" if model.cuda_graphs else "")
        for model in facts.checkpoints
    }
    if len(set(ways.values())) == 1:
        return next(iter(ways.values()))
    return ". ".join(f"{checkpoint}: {way}" for checkpoint, way in ways.items())


def _classes(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    return f"{len(labels)} classes: {shown}"


def ended_line(
    snapshot: SearchSnapshot,
    result: TrialResult,
    params: Mapping[str, ParamValue] | None = None,
) -> str:
    """Tell how a run of a trial ended, on one line.

    Args:
        snapshot: The state after it.
        result: The result.
        params: The trial's sampled hyperparameters, where they are to be told.

    Returns:
        Such as `trial 3 complete after 41s: f1_macro 0.8512, learning_rate=3e-05`.
    """
    took = duration(result.cost.seconds)
    line = (
        f"trial {result.number} {result.outcome.value} after {took}: {_outcome(snapshot, result)}"
    )
    return f"{line}, {params_line(params)}" if params else line


def _outcome(snapshot: SearchSnapshot, result: TrialResult) -> str:
    if result.failure is not None:
        kind = result.failure.kind.value.replace("_", " ")
        return f"{kind}: {_first_line(result.failure.message)}"
    if result.value is None:
        return "not validated yet" if result.cost.examples else "not begun"
    best = " (best so far)" if is_new_best(snapshot, result) else ""
    return f"{snapshot.objective} {score(result.value)}{best}"


def is_new_best(snapshot: SearchSnapshot, result: TrialResult) -> bool:
    """Tell whether a trial that just ended is the best so far.

    Args:
        snapshot: The state after it.
        result: The result.

    Returns:
        True where it is complete and leads.
    """
    return result.outcome is Outcome.COMPLETE and snapshot.best_number == result.number


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def running_trial(snapshot: SearchSnapshot, number: int) -> RunningTrial | None:
    """Find a trial among those that run.

    Args:
        snapshot: The state.
        number: The trial.

    Returns:
        The trial, or None if it does not run.
    """
    return next((trial for trial in snapshot.running if trial.number == number), None)


def running_groups(snapshot: SearchSnapshot) -> list[list[RunningTrial]]:
    """Sort the running trials by their workers.

    Args:
        snapshot: The state.

    Returns:
        For each worker the trials that it trains together, in the order in which they began.
    """
    groups: dict[int, list[RunningTrial]] = {}
    for trial in snapshot.running:
        groups.setdefault(trial.worker, []).append(trial)
    return list(groups.values())


def group_line(group: Sequence[RunningTrial], objective: str) -> str:
    """Tell how trials that are trained together are doing.

    Args:
        group: Two trials or more.
        objective: The metric that trials are ranked by.

    Returns:
        Such as `trials 12-19: head only, trained together, f1_macro up to 0.7100`.
    """
    names = trial_names(sorted(trial.number for trial in group))
    values = [max(known) for t in group if (known := [v for v in t.curve if not math.isnan(v)])]
    so_far = f"{objective} up to {score(max(values))}" if values else "not validated yet"
    return f"{names}: head only, trained together, {so_far}"


def counts_line(snapshot: SearchSnapshot) -> str:
    """Tell how many trials are in which state.

    Args:
        snapshot: The state.

    Returns:
        Such as `4 complete, 2 pruned, 1 running`; states without trials are left out.
    """
    counts = [f"{count} {state}" for state, count in snapshot.counts.items() if count]
    return ", ".join(counts) or "no trial yet"


def best_line(snapshot: SearchSnapshot) -> str:
    """Tell the best value so far against the default recipe.

    Args:
        snapshot: The state.

    Returns:
        Such as `0.8611 by trial 3, +0.0179 against the default recipe (0.8432)`.
    """
    if snapshot.best_value is None:
        return "no complete trial yet"
    best = f"{score(snapshot.best_value)} by trial {snapshot.best_number}"
    if snapshot.default_value is None:
        return best
    if snapshot.best_number == 0:
        return f"{best}, the default recipe"
    gain = difference(snapshot.best_value - snapshot.default_value)
    return f"{best}, {gain} against the default recipe ({score(snapshot.default_value)})"


def seconds_left(snapshot: SearchSnapshot) -> float | None:
    """Estimate how long the search still takes.

    What is left of the configurations costs what those before it cost on average, set-up
    included; the budget of active seconds is an upper bound.

    Args:
        snapshot: The state.

    Returns:
        Seconds, 0 or more; None before there is anything to go by.
    """
    bounds = []
    if snapshot.timeout_seconds is not None:
        bounds.append(max(0.0, snapshot.timeout_seconds - snapshot.active_seconds))
    finished = sum(snapshot.counts.get(state, 0) for state in _FINISHED)
    done = finished + sum(trial.fraction for trial in snapshot.running)
    if finished and snapshot.active_seconds > 0:
        left = max(0.0, snapshot.total_configurations - done)
        bounds.append(left * snapshot.active_seconds / done)
    return min(bounds) if bounds else None


def budget_line(snapshot: SearchSnapshot) -> str:
    """Tell how much of the budget is used.

    Args:
        snapshot: The state.

    Returns:
        Such as `6 of 12 configurations, 1m 12s of 4m 00s`.
    """
    used = format_duration(snapshot.active_seconds)
    if snapshot.timeout_seconds is not None:
        used += f" of {format_duration(snapshot.timeout_seconds)}"
    return (
        f"{snapshot.num_configurations} of {snapshot.total_configurations} configurations, {used}"
    )
