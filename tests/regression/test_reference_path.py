"""Whole trials with every shortcut give the losses and scores of a plain loop.

The plain loop is written out below: padded batches, `model(**inputs)`, torch's cross-entropy and
AdamW, no cache, no packing. It shares with the engine only what decides which rows a step sees,
where weights start, and which parameters a freezing strategy trains.
"""

from __future__ import annotations

import csv
import dataclasses
import gc
import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig, TrainingConfig
from automl_ft.data.batches import training_order
from automl_ft.export.model import _overlay
from automl_ft.files import quota
from automl_ft.models.freezing import plan_freezing
from automl_ft.models.layers import decay_exempt
from automl_ft.models.vocabulary import expand_saved
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import TrialResult, TrialSpec
from automl_ft.trial.build import build_job
from automl_ft.trial.checkpoint import BEST, LOGITS
from automl_ft.trial.evaluation import predict_logits
from automl_ft.trial.group import run_group
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.runner import run_trial
from automl_ft.trial.techniques import ALL, NONE, Techniques

TINY = Path(__file__).parents[1] / "unit" / "models" / "conftest.py"
ARCHITECTURES = (
    "bert", "distilbert", "roberta", "xlm-roberta", "albert", "electra", "deberta-v2", "xlnet",
    "gpt2", "llama", "opt", "modernbert", "mpnet",
)  # fmt: skip
PADDED = ("deberta-v2", "xlnet", "mpnet")
LABELS = ("bad", "good", "odd")
NUM_TRAIN, NUM_VALIDATION, BATCH_SIZE, EPOCHS, SEED = 26, 13, 6, 2, 5
NUM_STEPS = EPOCHS * math.ceil(NUM_TRAIN / BATCH_SIZE)
RECIPES: dict[str, dict[str, Any]] = {
    "none": {"freezing": "none", "weight_decay": 0.3, "l1": 0.02},
    "bottom_layers": {"freezing": "bottom_layers", "frozen_layers": 2, "weight_decay": 0.1},
    "head_only": {"freezing": "head_only"},
    "gradual_unfreezing": {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0},
}
SAME = 2e-4
"""How far losses of about one nat, and scores, may be apart after ten steps. Each step's gradients
agree to 1e-5, but Adam divides each by its own size, so that of a gradient that is near zero even
the rounding moves a weight."""
GRADIENTS = 1e-5
"""How far gradients may be apart, relative: sums of fp32 numbers in another order, over three
blocks forth and back, differ by ten to a hundred roundings of 6e-8."""
STACKED = 1e-4
"""How far losses and scores of stacked heads may be from those of each alone."""
BF16 = 0.02
"""How far the mean loss of 30 steps in bf16 may be from that in fp32, in nats."""


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    # On matrices this small a second thread only waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Every trial ends with a garbage collection, which would look at all imported libraries again.
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quota, "_SPARE_BYTES", 0)
        yield
    gc.unfreeze()
    torch.set_num_threads(threads)


class Listener:
    """Goes on whatever it hears, and remembers the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def progress(self, progress: Progress) -> Decision:
        self.losses.append(progress.train_loss)
        return Decision.CONTINUE

    def report(self, evaluation: Evaluation) -> Decision:
        return Decision.CONTINUE


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a trial did."""

    losses: list[float]
    """Of each step."""
    validation_losses: list[float]
    """Of each epoch."""
    best: int
    """The epoch whose scores are kept."""
    logits: np.ndarray
    """Scores of the validation rows after that epoch."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreparedStudy]:
    """Prepare a study of an architecture, with a cache of its own."""
    tiny = runpy.run_path(str(TINY))
    folder = tmp_path_factory.mktemp("reference")
    known: dict[str, PreparedStudy] = {}
    data = DataConfig(
        train=_write_rows(folder / "train.csv", NUM_TRAIN, 1),
        validation=_write_rows(folder / "validation.csv", NUM_VALIDATION, 2),
        test=None,
    )

    def prepare(name: str) -> PreparedStudy:
        if name not in known:
            place = folder / name
            with torch.random.fork_rng():
                torch.manual_seed(3)
                model = AutoModel.from_config(tiny["tiny_config"](name))
            tiny["_perturb"](model)
            model.save_pretrained(place)
            tiny["tiny_tokenizer"](name).save_pretrained(place)
            config = StudyConfig(
                model=ModelConfig(checkpoint=str(place)),
                data=data,
                device="cpu",
                training=TrainingConfig(
                    micro_batch_size=4,
                    eval_batch_size=5,
                    precision="fp32",
                    batching="packed",
                    validations_per_epoch=1,
                ),
            )
            study = prepare_study(config, (config.model.checkpoint,), None)
            cache = PrefixCache(folder / f"{name}-activations", 10**8)
            known[name] = dataclasses.replace(study, cache=cache)
        return known[name]

    return prepare


@pytest.fixture(scope="module")
def slow_traces() -> dict[tuple[str, str], Trace]:
    """Trials without any technique, by architecture and freezing strategy."""
    return {}


def _write_rows(path: Path, number: int, seed: int) -> str:
    """Write texts of 1 to 18 words, whose class shows in some of them."""
    draws = np.random.default_rng(seed)
    rows = [("text", "label")]
    for index in range(number):
        label = index % len(LABELS)
        words = draws.integers(0, 60, size=draws.integers(1, 19))
        words[::3] = 20 * label + words[::3] % 20
        rows.append((" ".join(f"w{word}" for word in words), LABELS[label]))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def spec_of(recipe: dict[str, Any], folder: Path) -> TrialSpec:
    plain = {"learning_rate": 1e-3, "batch_size": BATCH_SIZE, "epochs": EPOCHS, "dropout": 0.0}
    hyperparameters = complete({**plain, **recipe})
    return TrialSpec(number=0, hyperparameters=hyperparameters, seed=SEED, folder=str(folder))


def assert_shared_weights_are_whole(study: PreparedStudy) -> None:
    """Check that trials left alone what they share."""
    opened = study.checkpoint(None)
    shared = study.weights_of(opened).tensors
    assert shared
    for file in opened.resolved.weight_files:
        for name, tensor in load_file(file).items():
            assert torch.equal(shared[name], tensor), name


def engine(
    study: PreparedStudy, folder: Path, recipe: dict[str, Any], techniques: Techniques
) -> Trace:
    """Run a trial as a search does."""
    listener = Listener()
    result = run_trial(spec_of(recipe, folder), study, listener, techniques)
    assert result.failure is None, result.failure
    assert_shared_weights_are_whole(study)
    assert result.best_step is not None
    return Trace(
        losses=listener.losses,
        validation_losses=[e.metrics["validation_loss"] for e in result.evaluations],
        best=result.best_step // NUM_TRAIN - 1,
        logits=np.load(folder / LOGITS),
    )


def padded(study: PreparedStudy, split: str, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Fill rows up, place by place."""
    opened = study.checkpoint(None)
    found = [torch.from_numpy(opened.splits[split].row(int(row)).input_ids.copy()) for row in rows]
    side, token = opened.padding.side, opened.padding.token_id
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(found, batch_first=True, padding_value=token, padding_side=side).long(),
        "attention_mask": pad(
            [torch.ones_like(row) for row in found], batch_first=True, padding_side=side
        ).long(),
    }


def plain_loop(study: PreparedStudy, recipe: dict[str, Any]) -> tuple[list[float], list[Any]]:
    """Train as plainly as torch and transformers allow; return losses, and scores by epoch."""
    opened = study.checkpoint(None)
    loaded = study.load_model(opened, dropout=0.0, seed=SEED)
    model, plan = loaded.model.train(), plan_freezing(loaded.layer_map, complete(recipe))
    exempt, wanted = decay_exempt(model), plan.ever_trainable()
    decay, l1 = recipe.get("weight_decay", 0.0), recipe.get("l1", 0.0)
    named = [(name, p) for name, p in model.named_parameters() if name in wanted]
    decayed = [p for name, p in named if name not in exempt]
    optimizer = torch.optim.AdamW([
        {"params": decayed, "weight_decay": decay},
        {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ], lr=1e-3, foreach=False)  # fmt: skip
    labels = torch.from_numpy(np.array(opened.splits["train"].labels))
    losses, scores, seen = [], [], 0
    for step in range(NUM_STEPS):
        epoch, batch = divmod(step, NUM_STEPS // EPOCHS)
        rows = training_order(NUM_TRAIN, epoch, SEED)[batch * BATCH_SIZE :][:BATCH_SIZE]
        trainable = plan.trainable(plan.stage(seen / (EPOCHS * NUM_TRAIN)))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / NUM_STEPS)
        logits = model(**padded(study, "train", rows)).logits
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        loss.backward()
        moved = [p for _, p in named if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        with torch.no_grad():
            for parameter in decayed:
                if l1 and parameter.grad is not None:
                    shrunk = (parameter.abs() - optimizer.param_groups[0]["lr"] * l1).clamp(min=0)
                    parameter.copy_(parameter.sign() * shrunk)
        optimizer.zero_grad()
        losses.append(loss.item())
        seen += len(rows)
        if seen % NUM_TRAIN == 0:
            with torch.no_grad():
                inputs = padded(study, "validation", np.arange(NUM_VALIDATION))
                scores.append(model(**inputs).logits)
    return losses, scores


def recipe_for(name: str, strategy: str) -> dict[str, Any]:
    if name == "albert" and strategy == "bottom_layers":
        pytest.skip("ALBERT has a single block, and none below it to freeze")
    return {**RECIPES[strategy], "lr_schedule": "linear", "warmup_ratio": 0.0}


@pytest.mark.parametrize("strategy", RECIPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_trial_is_what_a_plain_loop_gives(
    name: str, strategy: str, studies: Callable[[str], PreparedStudy], tmp_path: Path
) -> None:
    study, recipe = studies(name), recipe_for(name, strategy)
    # Bucketed batches hold other rows than a plain loop's; how rows are run is what is compared.
    fast = engine(study, tmp_path, recipe, dataclasses.replace(ALL, bucketed=False))
    losses, scores = plain_loop(study, recipe)
    labels = torch.from_numpy(np.array(study.checkpoint(None).splits["validation"].labels))
    assert len(fast.losses) == NUM_STEPS
    assert fast.losses == pytest.approx(losses, abs=SAME)
    expected = [torch.nn.functional.cross_entropy(logits, labels).item() for logits in scores]
    assert fast.validation_losses == pytest.approx(expected, abs=SAME)
    np.testing.assert_allclose(fast.logits, scores[fast.best].numpy(), atol=SAME)
    assert np.ptp(losses) > 10 * SAME


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_stage_of_unfreezing_has_the_gradients_of_a_plain_step(
    name: str, studies: Callable[[str], PreparedStudy], tmp_path: Path
) -> None:
    study, rows = studies(name), np.arange(9)
    model = study.load_model(study.checkpoint(None), dropout=0.0, seed=SEED).model.train()
    labels = torch.from_numpy(np.array(study.checkpoint(None).splits["train"].labels))[rows]
    logits = model(**padded(study, "train", rows)).logits
    expected_loss = torch.nn.functional.cross_entropy(logits, labels)
    expected_loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(float(gradient.norm()) for gradient in expected.values())

    job = build_job(spec_of(RECIPES["gradual_unfreezing"], tmp_path), study)
    stored = []
    for stage in range(job.plan.num_stages):
        job.compute.enter(job.plan, stage)
        job.stepper.forward.enter(job.plan, stage, num_passes=1)
        found = job.stepper.forward.activations
        stored.append(0 if found is None else found.num_blocks)
        loss = job.stepper.backward(rows, 0, 0)
        assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-6)
        for parameter, value in job.model.named_parameters():
            if parameter not in job.plan.trainable(stage) or parameter not in expected:
                assert value.grad is None or not value.grad.any(), parameter
                continue
            right, gradient = expected[parameter], value.grad
            if job.cut is not None and parameter == job.cut.name:
                gradient = torch.zeros_like(right)
                gradient[job.cut.vocabulary.tokens] = value.grad
            scale = max(float(right.norm()), 1e-2 * largest)
            assert float((gradient - right).norm()) <= GRADIENTS * scale, parameter
        job.optimizer.zero_grad()
    depths = list(range(job.plan.layer_map.num_layers, 0, -1))
    assert stored == [*depths, 0, 0]
    assert (job.cut is None) == (name in PADDED)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_of_a_split_are_those_of_padded_batches(
    name: str, studies: Callable[[str], PreparedStudy], tmp_path: Path
) -> None:
    study = studies(name)
    opened = study.checkpoint(None)
    model = study.load_model(opened, dropout=0.0, seed=SEED).model
    expected = predict_logits(
        model, opened.splits["validation"], opened.padding, 5, torch.device("cpu")
    )
    job = build_job(spec_of(RECIPES["head_only"], tmp_path), study)
    job.model.eval()
    plain = job.validation.exact.all_scores(5)
    np.testing.assert_allclose(plain, expected, atol=1e-5, rtol=1e-5)
    job.validation.exact.enter(job.plan, 0, num_passes=1)
    assert job.validation.exact.activations is not None
    stored = job.validation.exact.all_scores(5)
    np.testing.assert_allclose(stored, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["none", "bottom_layers", "head_only"])
@pytest.mark.parametrize("switched_on", [
    ("packed",), ("packed", "last_block"), ("packed", "compact_vocabulary"), ("prefix_cache",),
    ("packed", "prefix_cache"), ("packed", "row_attention"), ("fused_optimizer",),
    ("large_validation",),
], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_technique_changes_nothing_without_the_others(
    name: str,
    switched_on: tuple[str, ...],
    strategy: str,
    studies: Callable[[str], PreparedStudy],
    slow_traces: dict[tuple[str, str], Trace],
    tmp_path: Path,
) -> None:
    study, recipe = studies(name), recipe_for(name, strategy)
    slow = slow_traces.get((name, strategy))
    if slow is None:
        slow = engine(study, tmp_path / "slow", recipe, NONE)
        slow_traces[name, strategy] = slow
    techniques = dataclasses.replace(NONE, **dict.fromkeys(switched_on, True))
    fast = engine(study, tmp_path / "fast", recipe, techniques)
    assert fast.losses == pytest.approx(slow.losses, abs=SAME)
    np.testing.assert_allclose(fast.logits, slow.logits, atol=SAME)


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("strategy", ["none", "gradual_unfreezing"])
def test_bucketed_batches_hold_other_rows_but_train_the_same(
    name: str, strategy: str, studies: Callable[[str], PreparedStudy], tmp_path: Path
) -> None:
    study, recipe = studies(name), RECIPES[strategy]
    bucketed = dataclasses.replace(NONE, bucketed=True)
    fast = engine(study, tmp_path / "fast", recipe, ALL)
    slow = engine(study, tmp_path / "slow", recipe, bucketed)
    other = engine(study, tmp_path / "other", recipe, NONE)
    assert fast.losses == pytest.approx(slow.losses, abs=SAME)
    assert fast.losses != pytest.approx(other.losses, abs=SAME)
    np.testing.assert_allclose(fast.logits, slow.logits, atol=SAME)


def whole_parameters(study: PreparedStudy, folder: Path) -> dict[str, torch.Tensor]:
    """Return the best model of a trial, whole, as an export does."""
    model = study.load_model(study.checkpoint(None), dropout=0.0, seed=SEED).model
    pretrained = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return expand_saved(load_file(folder / BEST), pretrained)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in PADDED])
def test_a_vocabulary_that_was_cut_is_whole_again_with_every_row_decayed(
    name: str, studies: Callable[[str], PreparedStudy], tmp_path: Path
) -> None:
    study = studies(name)
    recipe = {"freezing": "none", "weight_decay": 0.9, "l1": 0.5}
    engine(study, tmp_path / "cut", recipe, ALL)
    engine(study, tmp_path / "whole", recipe, dataclasses.replace(ALL, compact_vocabulary=False))
    found, expected = (whole_parameters(study, tmp_path / kind) for kind in ("cut", "whole"))
    assert found.keys() == expected.keys()
    for parameter, values in expected.items():
        assert found[parameter].shape == values.shape
        torch.testing.assert_close(found[parameter], values, atol=SAME, rtol=0, msg=parameter)
    model = study.load_model(study.checkpoint(None), dropout=0.0, seed=SEED).model
    embedding = model.get_input_embeddings().weight
    (cut,) = (key for key, value in model.named_parameters() if value is embedding)
    # Rows of words that no text holds: only decay and L1 reach them.
    moved = (found[cut] - embedding.detach()).abs().amax(1)
    assert load_file(tmp_path / "cut" / BEST)[cut].shape[0] < len(embedding)
    assert (moved > 1e-4).all()
    # The exported model is the plain one with the checkpoint laid over it: padded, whole.
    _overlay(model, tmp_path / "cut" / BEST)
    opened = study.checkpoint(None)
    scores = predict_logits(
        model, opened.splits["validation"], opened.padding, 5, torch.device("cpu")
    )
    np.testing.assert_allclose(scores, np.load(tmp_path / "cut" / LOGITS), atol=1e-5)


@pytest.mark.parametrize("strategy", ["none", "bottom_layers", "head_only"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_in_bf16_track_those_in_fp32(
    name: str, strategy: str, studies: Callable[[str], PreparedStudy], tmp_path: Path
) -> None:
    study, recipe = studies(name), {**recipe_for(name, strategy), "epochs": 6}
    training = dataclasses.replace(study.config.training, precision="bf16")
    config = dataclasses.replace(study.config, training=training)
    rough = engine(dataclasses.replace(study, config=config), tmp_path / "rough", recipe, ALL)
    exact = engine(study, tmp_path / "exact", recipe, ALL)
    assert len(rough.losses) == 30
    assert rough.losses != exact.losses
    assert np.mean(rough.losses) == pytest.approx(np.mean(exact.losses), abs=BF16)
    assert np.abs(np.subtract(rough.losses, exact.losses)).max() <= 3 * BF16
    assert rough.validation_losses == pytest.approx(exact.validation_losses, abs=BF16)
    assert {value.dtype for value in load_file(tmp_path / "rough" / BEST).values()} <= {
        torch.float32, torch.float64, torch.int64,
    }  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stacked_heads_are_trained_as_one_by_one(
    name: str,
    studies: Callable[[str], PreparedStudy],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = studies(name)
    recipes: list[dict[str, Any]] = [
        {"freezing": "head_only", "dropout": 0.3, "learning_rate": 3e-2},
        {"freezing": "head_only", "label_smoothing": 0.2, "weight_decay": 0.3},
        {"freezing": "head_only", "batch_size": 4, "lr_schedule": "cosine", "epochs": 3},
    ]
    specs = [
        dataclasses.replace(spec_of(recipe, tmp_path / f"stacked-{number}"), number=number)
        for number, recipe in enumerate(recipes)
    ]
    listeners = [Listener() for _ in specs]
    results: list[TrialResult] = []
    run_group(specs, study, listeners.__getitem__, results.append, is_pausing=lambda: False)
    assert not caplog.records  # what keeps trials apart is logged
    for result in results:
        alone = engine(study, tmp_path / f"{result.number}", recipes[result.number], ALL)
        assert listeners[result.number].losses == pytest.approx(alone.losses, abs=STACKED)
        logits = np.load(tmp_path / f"stacked-{result.number}" / LOGITS)
        np.testing.assert_allclose(logits, alone.logits, atol=STACKED)
        assert result.cost.forecast_mib is not None
    assert sorted(result.number for result in results) == [0, 1, 2]


def test_every_architecture_is_here(studies: Callable[[str], PreparedStudy]) -> None:
    assert set(runpy.run_path(str(TINY))["ARCHITECTURES"]) == set(ARCHITECTURES)
