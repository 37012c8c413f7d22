"""Steps are recorded where that gives the same gradients and is clearly faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from automl_ft.config.study import StudyConfig
from automl_ft.models import packed
from automl_ft.models.capabilities import find_capabilities
from automl_ft.trial import look
from automl_ft.trial.graph_look import GraphLook, look_at_graphs
from automl_ft.trial.look import LookedAt, ModelLook, look_at_model
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.stopwatch import Stopwatch, make_stopwatch
from tests.fakes.recorders import BrokenRecorder, TapeRecorder

FASTER, SLOWER = GraphLook(pays=True, problem=""), GraphLook(pays=False, problem="")


@pytest.fixture(autouse=True)
def _masks_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    make = packed.sdpa_mask
    monkeypatch.setattr(packed, "sdpa_mask", lambda *args, **kwargs: make(*args, **kwargs | skips))


@pytest.fixture
def watch_of() -> Callable[..., Stopwatch]:
    def make(study: PreparedStudy, precision: str = "fp32") -> Stopwatch:
        opened = study.checkpoint(None)
        loaded = study.load_model(opened, dropout=0.1, seed=0)
        capabilities = find_capabilities(loaded.model, loaded.layer_map)
        train, padding = opened.splits["train"], opened.padding
        return make_stopwatch(loaded, capabilities, train, padding, precision, has_stream=False)

    return make


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a recorded step take some share of a plain one's time."""

    def set_share(share: float) -> None:
        times = []

        def measured(watch: Stopwatch, run: Callable[[], object]) -> float:
            run()
            times.append(1.0 if len(times) % 2 == 0 else share)
            return times[-1]

        monkeypatch.setattr(Stopwatch, "seconds", measured)

    return set_share


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("share", "pays"), [(0.5, True), (0.95, False), (1.5, False)])
def test_it_pays_where_recorded_steps_are_clearly_faster(
    study: PreparedStudy, watch_of: Any, seconds: Any, precision: str, share: float, pays: bool
) -> None:
    seconds(share)
    recorder = TapeRecorder()
    found = look_at_graphs(watch_of(study, precision), recorder)
    assert found == GraphLook(pays=pays, problem="")
    assert recorder.num_recorded == 1 < recorder.num_replayed


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("roberta", {}),
        ("electra", {"embedding_size": 16}),
        ("gpt2", {"pad_token_id": None}),
        ("modernbert", {"global_attn_every_n_layers": 2, "local_attention": 4}),
    ],
)
def test_steps_of_other_architectures_can_be_recorded(
    config: StudyConfig,
    save_checkpoint: Callable[..., Path],
    watch_of: Any,
    architecture: str,
    changes: dict[str, Any],
) -> None:
    folder = save_checkpoint(architecture, **changes)
    model = dataclasses.replace(config.model, checkpoint=str(folder))
    study = prepare_study(dataclasses.replace(config, model=model), (str(folder),), None)
    recorder = TapeRecorder()
    assert look_at_graphs(watch_of(study), recorder).problem == ""
    assert recorder.num_replayed > 0


def test_random_states_stay_as_they_were(study: PreparedStudy, watch_of: Any) -> None:
    watch = watch_of(study)
    before = torch.get_rng_state()
    look_at_graphs(watch, TapeRecorder())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_recorded_is_told(study: PreparedStudy, watch_of: Any, caplog: Any) -> None:
    found = look_at_graphs(watch_of(study), BrokenRecorder())
    assert found.problem == "operation not permitted when stream is capturing"
    assert not found.pays
    assert not caplog.records  # it becomes a note of the study


class WrongRecorder(TapeRecorder):
    """Replays something else than what was recorded."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        super().__init__()
        self._parameter = parameter

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        replay, gradient = super().record(work), self._parameter.grad
        assert gradient is not None

        def wrong() -> None:
            replay()
            gradient.mul_(1.1)

        return wrong


def test_other_gradients_are_a_reason_against_it(study: PreparedStudy, watch_of: Any) -> None:
    watch = watch_of(study)
    recorder = WrongRecorder(next(iter(watch.compute.master.parameters())))
    found = look_at_graphs(watch, recorder)
    assert found == GraphLook(pays=False, problem="their gradients are others")


@pytest.fixture
def look_with(
    study: PreparedStudy, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ModelLook]:
    """Look at the model of a study as if its device recorded work."""

    def run(found: Any, *, recorder: Any = TapeRecorder, **changes: Any) -> ModelLook:
        opened = study.checkpoint(None)
        training = {"batching": "packed", **changes}
        wanted = dataclasses.replace(config.training, **training)
        monkeypatch.setattr(look, "recorder_for", lambda device: recorder and recorder())
        if found is not None:
            monkeypatch.setattr(look, "look_at_graphs", lambda watch, recorder: found())
        return look_at_model(
            dataclasses.replace(config, training=wanted),
            LookedAt(
                loaded=study.load_model(opened, dropout=0.0, seed=0),
                splits=opened.splits,
                padding=opened.padding,
                max_length=opened.facts.max_length,
                replacement_token_id=opened.replacement_token_id,
            ),
        )

    return run


@pytest.mark.parametrize("found", [FASTER, SLOWER])
def test_auto_takes_what_the_look_found(look_with: Any, found: GraphLook) -> None:
    got = look_with(lambda: found)
    assert got.cuda_graphs is found.pays
    assert not any("CUDA" in note for note in got.fallbacks)


def test_a_problem_is_said_once_of_the_study(look_with: Any) -> None:
    got = look_with(None, recorder=BrokenRecorder)
    assert not got.cuda_graphs
    assert (
        "Steps of `BertForSequenceClassification` are not recorded as CUDA graphs: operation not"
        " permitted when stream is capturing." in got.fallbacks
    )


def test_where_memory_runs_out_nothing_is_recorded(look_with: Any) -> None:
    def fails() -> GraphLook:
        raise torch.OutOfMemoryError("out of memory")

    got = look_with(fails)
    assert not got.cuda_graphs
    assert any("memory ran out" in note for note in got.fallbacks)


def test_another_error_is_raised(look_with: Any) -> None:
    def fails() -> GraphLook:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        look_with(fails)


@pytest.mark.parametrize(
    "changes", [{"cuda_graphs": "never"}, {"cuda_graphs": "always"}, {"batching": "bucketed"}]
)
def test_nothing_is_looked_at_where_nothing_depends_on_it(
    look_with: Any, changes: dict[str, Any]
) -> None:
    def fails() -> GraphLook:
        raise AssertionError("looked")

    assert not look_with(fails, **changes).cuda_graphs


def test_a_cpu_is_not_looked_at_and_says_so_only_where_graphs_were_asked_for(
    look_with: Any,
) -> None:
    got = look_with(None, recorder=None)
    assert not got.cuda_graphs
    assert not any("cuda_graphs" in note for note in got.fallbacks)
    got = look_with(None, recorder=None, cuda_graphs="always")
    assert "`training.cuda_graphs: always` cannot be had on `cpu`." in got.fallbacks
