"""How many trials at once `workers: auto` comes to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from automl_ft.trial import occupancy
from automl_ft.trial.occupancy import Room, choose_workers, workers_on_cpu, workers_on_gpu
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.stopwatch import Stopwatch


def room(cores: int = 8, threads: int | None = None, most: int = 8) -> Room:
    return Room(cores=cores, threads=threads, most=most)


def amdahl(serial: float) -> Callable[[int], float]:
    """Return the seconds of a step of which a part gains nothing from threads."""
    return lambda threads: serial + (1 - serial) / threads


@pytest.mark.parametrize(
    ("serial", "wanted"), [(0.0, 1), (0.01, 1), (0.05, 4), (0.2, 8), (0.5, 8), (1.0, 8)]
)
def test_the_fewest_workers_that_train_nearly_fastest_are_taken(serial: float, wanted: int) -> None:
    found = workers_on_cpu(amdahl(serial), room())
    assert found == wanted
    rates = {n: n / amdahl(serial)(8 // n) for n in (1, 2, 4, 8)}
    if found > 1:
        assert rates[found] >= 0.95 * max(rates.values())
        assert rates[found] >= 1.1 * rates[1]


def test_two_cores_as_measured_are_better_used_by_two_workers() -> None:
    assert workers_on_cpu({2: 0.124, 1: 0.186}.__getitem__, room(cores=2)) == 2


def test_threads_that_hinder_each_other_are_not_used() -> None:
    assert workers_on_cpu({2: 5.0, 1: 0.2}.__getitem__, room(cores=2)) == 2


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (room(cores=1), 1),
        (room(most=1), 1),
        (room(most=3), 2),
        (room(cores=6), 4),
        (room(cores=64), 8),
        (room(threads=8), 1),
        (room(threads=4), 2),
        (room(threads=16), 1),
    ],
)
def test_there_are_no_more_than_there_is_room_for(given: Room, wanted: int) -> None:
    assert workers_on_cpu(lambda threads: 1.0, given) == wanted


def test_steps_are_timed_with_the_threads_that_workers_would_have() -> None:
    asked: list[int] = []

    def seconds(threads: int) -> float:
        asked.append(threads)
        return 1.0

    workers_on_cpu(seconds, room())
    assert asked == [8, 4, 2, 1]
    asked.clear()
    workers_on_cpu(seconds, room(threads=2))
    assert asked == [2, 2, 2]


@pytest.mark.parametrize(
    ("busy", "wanted"),
    [(0.0, 1), (1.0, 1), (0.92, 1), (0.9, 2), (0.6, 2), (0.5, 2), (0.34, 3), (0.1, 8)],
)
def test_a_gpu_gets_as_many_as_fill_it(busy: float, wanted: int) -> None:
    assert workers_on_gpu(busy, room()) == wanted
    assert workers_on_gpu(busy, room(most=1)) == 1


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a step of one thread take as long as one of two; return the threads of each."""
    found: list[int] = []

    def train(self: Stopwatch, batching: str) -> float:
        assert batching == "packed"
        found.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(Stopwatch, "train", train)
    monkeypatch.setattr(occupancy, "usable_cores", lambda: 2)
    monkeypatch.setattr(occupancy, "free_memory_mib", lambda device: 1e6)
    return found


def test_a_study_is_timed_by_its_own_steps_and_threads_stay_as_they_were(
    study_with: Any, timed: list[int]
) -> None:
    before = torch.get_num_threads()
    assert choose_workers(study_with(workers="auto"), 8) == 2
    assert timed == [2, 2, 2, 1, 1, 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("most", "wanted"), [(1, 1), (2, 2)])
def test_there_are_no_more_than_asked_for(
    study: PreparedStudy, timed: list[int], most: int, wanted: int
) -> None:
    assert choose_workers(study, most) == wanted
    assert bool(timed) is (wanted > 1)


@pytest.mark.parametrize(
    ("free", "limit", "wanted"),
    [(1500.0, None, 1), (2000.0, None, 1), (3500.0, None, 2), (1e6, 2.0, 1), (None, None, 2)],
)
def test_workers_fit_into_memory(
    study_with: Any,
    timed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    free: float | None,
    limit: float | None,
    wanted: int,
) -> None:
    monkeypatch.setattr(occupancy, "free_memory_mib", lambda device: free)
    assert choose_workers(study_with(workers="auto", memory_gib=limit), 8) == wanted


def test_memory_that_runs_out_while_it_is_tried_leaves_one(
    study: PreparedStudy, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Stopwatch, batching: str) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Stopwatch, "train", fail)
    assert choose_workers(study, 8) == 1


def test_an_error_of_the_model_is_told(
    study: PreparedStudy, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Stopwatch, batching: str) -> float:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Stopwatch, "train", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        choose_workers(study, 8)


class Gpu:
    """Stands for some GPUs on which kernels take a share of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, count: int, busy: float) -> None:
        self.profiled = 0
        self._busy = busy
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(occupancy, "empty_cache", lambda device: None)
        monkeypatch.setattr(torch.profiler, "profile", self._profile)
        monkeypatch.setattr(occupancy, "_stopwatch", lambda *_: (self, "packed"))

    def train(self, batching: str) -> float:
        return 0.5

    def _profile(self, activities: list[Any]) -> Any:
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        self.profiled += 1
        return self

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def key_averages(self) -> list[Any]:
        kinds = {"CUDA": 0.5e6 * self._busy / 2, "CPU": 1e6}
        return [
            SimpleNamespace(
                self_device_time_total=seconds,
                device_type=SimpleNamespace(name=kind),
                is_user_annotation=is_annotation,
            )
            for kind, seconds in [*kinds.items()] * 2
            for is_annotation in (False, *[True] * (kind == "CUDA"))
        ]


@pytest.fixture
def on_gpus(
    study: PreparedStudy, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[PreparedStudy, Gpu]]:
    """Return a function that puts the study on GPUs."""

    def make(
        device: str, *, count: int, busy: float, cores: int = 64, has_graphs: bool = False
    ) -> tuple[PreparedStudy, Gpu]:
        monkeypatch.setattr(occupancy, "usable_cores", lambda: cores)
        checkpoints = {
            name: dataclasses.replace(
                opened, facts=dataclasses.replace(opened.facts, cuda_graphs=has_graphs)
            )
            for name, opened in study.checkpoints.items()
        }
        config = dataclasses.replace(study.config, device=device, workers="auto")
        moved = dataclasses.replace(
            study, config=config, device=torch.device("cuda:0"), checkpoints=checkpoints
        )
        return moved, Gpu(monkeypatch, count=count, busy=busy)

    return make


@pytest.mark.parametrize(
    ("device", "count", "cores", "most", "wanted"),
    [("cuda:0", 1, 64, 9, 2), ("cuda:0", 4, 64, 9, 2), ("cuda", 4, 64, 9, 8), ("auto", 2, 64, 9, 4),
     ("auto", 4, 6, 9, 6), ("auto", 4, 1, 9, 4), ("auto", 4, 64, 5, 5), ("auto", 4, 64, 3, 3)],
)  # fmt: skip
def test_all_gpus_that_workers_take_in_turn_are_filled(
    on_gpus: Any, device: str, count: int, cores: int, most: int, wanted: int
) -> None:
    study, gpu = on_gpus(device, count=count, busy=0.5, cores=cores)
    assert choose_workers(study, most) == wanted
    assert gpu.profiled == (most > count or device != "auto")


def test_threads_that_the_user_wants_for_each_worker_are_counted(on_gpus: Any) -> None:
    study, _ = on_gpus("cuda:0", count=1, busy=0.1, cores=6)
    training = dataclasses.replace(study.config.training, threads=2)
    config = dataclasses.replace(study.config, training=training)
    assert choose_workers(dataclasses.replace(study, config=config), 8) == 3


@pytest.mark.parametrize(
    ("setting", "found", "is_timed"),
    [("auto", True, False), ("auto", False, True), ("always", False, False), ("never", True, True)],
)
def test_whether_steps_are_recorded_is_what_trials_will_do(
    on_gpus: Any, setting: str, found: bool, is_timed: bool
) -> None:
    study, gpu = on_gpus("cuda:0", count=1, busy=0.5, has_graphs=found)
    training = dataclasses.replace(study.config.training, cuda_graphs=setting)
    config = dataclasses.replace(study.config, training=training)
    choose_workers(dataclasses.replace(study, config=config), 8)
    assert bool(gpu.profiled) is is_timed


def test_steps_that_are_recorded_leave_no_gap(on_gpus: Any) -> None:
    study, gpu = on_gpus("auto", count=3, busy=0.1, has_graphs=True)
    assert choose_workers(study, 8) == 3
    assert gpu.profiled == 0


@pytest.mark.parametrize(
    "error", [RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"), AssertionError("no CUDA")]
)
def test_a_profiler_that_is_not_there_leaves_one(
    on_gpus: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    study, _ = on_gpus("cuda:0", count=1, busy=0.1)

    def forbid(activities: list[Any]) -> Any:
        raise error

    monkeypatch.setattr(torch.profiler, "profile", forbid)
    assert choose_workers(study, 8) == 1


def test_other_devices_get_one(study: PreparedStudy, timed: list[int]) -> None:
    assert choose_workers(dataclasses.replace(study, device=torch.device("mps")), 8) == 1
    assert timed == []


def test_the_time_of_kernels_is_read_as_torch_s_profiler_gives_it() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(4) + 1
    events = profile.key_averages()
    assert events
    # The fields that are read, as torch names them.
    assert {event.device_type.name for event in events} == {"CPU"}
    assert {event.self_device_time_total for event in events} == {0}
    assert {event.is_user_annotation for event in events} == {False}
