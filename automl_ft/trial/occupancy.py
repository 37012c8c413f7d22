"""How many trials at once does this machine train fastest?

What `workers: auto` comes to, measured when a search begins, with a training step of the study's
own rows:

- On a CPU a step is timed with all cores, with a half of them, a quarter and so on: `n` workers
  with a part of the cores each make `n` steps in the time of one, as far as they do not hinder each
  other, which is not measured.
- On a GPU the time in which its kernels run is set against the time of the step. What is missing is
  the time in which the GPU waits for Python, and which the step of another trial could fill. Steps
  that are recorded as CUDA graphs leave none.

The fewest that come near the best are taken, as a sampler that has to propose many configurations
at once knows less of each.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from automl_ft.config.study import StudyConfig
from automl_ft.files.cores import usable_cores
from automl_ft.trial.assets import assets_of
from automl_ft.trial.batching import BUCKETED
from automl_ft.trial.budget import free_memory_mib
from automl_ft.trial.device import empty_cache
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.prepare import OpenCheckpoint, PreparedStudy
from automl_ft.trial.stopwatch import Stopwatch, make_stopwatch

__all__ = ["Room", "choose_workers", "workers_on_cpu", "workers_on_gpu"]

_MOST = 8
"""Workers of one device at most."""
_NEAR_BEST = 0.95
_CLEARLY = 1.1
"""Several workers must train faster than one by this factor."""
_BYTES_A_PARAMETER = 20
"""fp32 parameters, their bf16 copy, gradients and AdamW's two moments: 4 + 2 + 2 + 4 + 8."""
_PROCESS_MIB = 1024.0
"""What a worker takes besides: libraries and kernels or a GPU's context, and a batch."""
_SHARE = 0.7
"""Of what is free; see `trial.budget`."""
_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How many workers there is room for, whatever they gain."""

    cores: int
    """CPU cores that the search may use."""
    threads: int | None
    """CPU threads that each worker is to have; None for a part of the cores."""
    most: int
    """Workers of one device that its memory allows, 1 or more."""

    def threads_of(self, num_workers: int) -> int:
        """Return the CPU threads of each of some workers.

        Args:
            num_workers: How many workers.

        Returns:
            1 or more.
        """
        return self.threads or max(1, self.cores // num_workers)


def choose_workers(study: PreparedStudy, most: int) -> int:
    """Choose how many trials run at once.

    Args:
        study: Prepared; a model of it is loaded and let go again.
        most: No more than so many, 1 or more.

    Returns:
        Workers, 1 or more; on several GPUs those of all together. 1 where nothing can be measured.

    Raises:
        ModelError: The weights of the model are gone, or others than before.
    """
    kind = study.device.type
    if most == 1 or kind not in ("cpu", "cuda"):
        return 1
    room = _room(study)
    if kind == "cpu":
        return _measured(study, dataclasses.replace(room, most=min(room.most, most)))
    num_devices = _num_devices(study.config)
    opened = _largest(study)
    each = 1
    if room.most > 1 and most > num_devices and not study.wants_graphs(opened):
        each = _measured(study, room)
    # A GPU that waits for its turn on a core is better than none.
    return min(most, max(num_devices, min(each * num_devices, room.cores // (room.threads or 1))))


def workers_on_cpu(seconds: Callable[[int], float], room: Room) -> int:
    """Choose from the times of a step on fewer and fewer threads.

    Args:
        seconds: Gives from a number of threads the seconds of a step.
        room: How many there is room for.

    Returns:
        A power of two.
    """
    counts = [1]
    while 2 * counts[-1] <= min(room.most, room.cores // (room.threads or 1)):
        counts.append(2 * counts[-1])
    if len(counts) == 1:
        return 1
    return _fewest_near_best({n: n / seconds(room.threads_of(n)) for n in counts})


def workers_on_gpu(busy: float, room: Room) -> int:
    """Choose from how busy one trial keeps a GPU.

    Args:
        busy: Share of a step in which kernels run, in [0, 1]; 0 where that is unknown.
        room: How many there is room for.

    Returns:
        Workers of one GPU.
    """
    if busy <= 0:
        return 1
    return _fewest_near_best({n: min(n, 1 / busy) for n in range(1, room.most + 1)})


def _fewest_near_best(rates: Mapping[int, float]) -> int:
    best = max(rates.values())
    chosen = next(count for count in sorted(rates) if rates[count] >= _NEAR_BEST * best)
    return chosen if rates[chosen] >= _CLEARLY * rates[1] else 1


def _room(study: PreparedStudy) -> Room:
    training = study.config.training
    most = _MOST
    free = free_memory_mib(study.device)
    if training.memory_gib is not None:
        free = min(1024 * training.memory_gib, math.inf if free is None else free)
    if free is not None:
        parameters = _largest(study).facts.num_parameters
        need = _PROCESS_MIB + _BYTES_A_PARAMETER * parameters / _MIB
        most = min(most, int(_SHARE * free / need))
    return Room(cores=usable_cores(), threads=training.threads, most=max(1, most))


def _num_devices(config: StudyConfig) -> int:
    return torch.cuda.device_count() if config.device in ("auto", "cuda") else 1


def _largest(study: PreparedStudy) -> OpenCheckpoint:
    return max(study.checkpoints.values(), key=lambda opened: opened.facts.num_parameters)


def _measured(study: PreparedStudy, room: Room) -> int:
    """Return the workers of one device; 1 where memory does not even suffice for a try."""
    try:
        watch, batching = _stopwatch(study, _largest(study))
        if study.device.type == "cuda":
            return workers_on_gpu(_busy_share(watch, batching), room)
        return workers_on_cpu(lambda threads: _step_seconds(watch, batching, threads), room)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    finally:
        gc.collect()
        empty_cache(study.device)


def _stopwatch(study: PreparedStudy, opened: OpenCheckpoint) -> tuple[Stopwatch, str]:
    loaded = study.load_model(  # timed, never trained
        opened, dropout=None, seed=study.config.seed, weights=study.weights_of(opened)
    )
    loaded.model.to(study.device)  # type: ignore[arg-type]  # transformers wraps `to`
    capabilities = assets_of(study, opened, loaded).capabilities
    watch = make_stopwatch(
        loaded, capabilities, opened.splits["train"], opened.padding, study.precision_of(opened)
    )
    return watch, opened.facts.batching if capabilities.packed is not None else BUCKETED


def _step_seconds(watch: Stopwatch, batching: str, threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        watch.train(batching)
        return min(watch.train(batching) for _ in range(2))
    finally:
        torch.set_num_threads(before)


def _busy_share(watch: Stopwatch, batching: str) -> float:
    """Return the share of a step in which kernels run; 0 where the profiler sees none."""
    watch.train(batching)
    seconds = min(watch.train(batching) for _ in range(3))
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            watch.train(batching)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        return 0.0  # the driver forbids it, or this build of torch has none
    kernels = sum(
        float(event.self_device_time_total)
        for event in profile.key_averages()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    return min(1.0, kernels / 1e6 / seconds)
