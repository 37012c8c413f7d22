"""How is the work of a micro-batch recorded once, and launched as a whole from then on?

A GPU that trains a small model on short rows waits for Python, which launches each of some thousand
kernels of a step by itself. A CUDA graph is launched at once. It holds kernels with the addresses
that they work on, and so serves micro-batches of one shape, which are copied to where the recorded
one lay; for this rows are filled up to one of a few shapes (`models.packing`). The numbers are
those of kernels that are launched one by one, dropout masks included.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from automl_ft.models.packed_model import PackedInputs
from automl_ft.trial.compute import ComputeModel
from automl_ft.trial.forward import ModelInputs

__all__ = ["CudaRecorder", "MicroBatch", "RecordedSteps", "Recorder", "recorder_for"]

_log = logging.getLogger(__name__)
_WORTH_RECORDING = 2
"""Micro-batches of a shape that are run before the next one is recorded: recording takes about as
long as running two, and rare shapes do not come back. Not measured."""
_MOST = 64
"""Shapes that are recorded at most in one stage of a trial."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """All that forward and backward of B rows depend on, besides the model; on its device."""

    model: ModelInputs
    """What the model is called with."""
    targets: Tensor
    """Class ids, shape (B,), int64."""
    weight: Tensor | float
    """What the summed loss is divided by; a scalar tensor where steps are recorded."""


class Recorder(Protocol):
    """What records work of a device."""

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Record what a function launches, without running it.

        Args:
            work: Called once; works on tensors that stay where they are.

        Returns:
            Launches it all, as often as it is called.
        """
        ...

    def release(self) -> None:
        """Give back what recordings shared; none of them is launched any more."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share their memory, as no two of them run at a time."""

    def __init__(self) -> None:
        """Begin without memory."""
        self._pool: Any = None

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Record a graph; see `Recorder`.

        Args:
            work: Must not wait for the device, nor copy from memory that is not pinned.

        Returns:
            Replays the graph in the stream that is current then.

        Raises:
            RuntimeError: The work cannot be recorded, or memory runs out.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        stream, numbers = torch.cuda.current_stream(), torch.cuda.get_rng_state()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                work()
        except BaseException:
            self._leave(stream, numbers)
            raise
        return graph.replay

    def _leave(self, stream: torch.cuda.Stream, numbers: Tensor) -> None:
        """Do what torch leaves undone where it fails to end a recording.

        Then it stays in the recording's stream, takes memory from the pool for it, and has a
        generator that refuses to draw outside of recordings (pytorch/pytorch#171263); another one
        with the same numbers takes its place.
        """
        torch.cuda.set_stream(stream)
        index = torch.cuda.current_device()
        with suppress(RuntimeError, AttributeError):  # it was ended after all; no public way
            torch._C._cuda_endAllocateToPool(index, self._pool)
        self._pool = None
        fresh = torch.Generator(device=f"cuda:{index}")
        fresh.set_state(numbers)
        torch.cuda.default_generators[index].graphsafe_set_state(fresh)

    def release(self) -> None:
        """Take other memory for the next recordings: this pool goes with the last of its graphs."""
        self._pool = None


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records the work of a device.

    Args:
        device: Where trials run.

    Returns:
        None where nothing does.
    """
    return CudaRecorder() if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Recording:
    """The recorded work of micro-batches of one shape."""

    batch: MicroBatch
    """Where they are copied to."""
    loss: Tensor
    """Where their loss is found, a scalar."""
    gradients: tuple[tuple[nn.Parameter, Tensor], ...]
    """Masters and the gradients that they have afterwards."""
    replay: Callable[[], object]

    def run(self, batch: MicroBatch) -> Tensor:
        for into, value in zip(_tensors(self.batch), _tensors(batch), strict=True):
            into.copy_(value, non_blocking=True)
        self.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.loss.clone()


def _warn(reason: str) -> None:
    _log.warning(
        "Steps could not be recorded as CUDA graphs (%s); trials that meet this go on without them."
        " `training.cuda_graphs: never` does not try.",
        reason,
    )


class RecordedSteps:
    """Runs the micro-batches of one trial: those of a shape that comes often as a recording."""

    def __init__(
        self, recorder: Recorder, compute: ComputeModel, tell: Callable[[str], object] = _warn
    ) -> None:
        """Start without recordings.

        Args:
            recorder: Records work of the device.
            compute: The models; their parameters stay where they are.
            tell: Told why, where recording fails and kernels are launched one by one from then on.
        """
        self._tell = tell
        self._recorder: Recorder | None = recorder
        self._masters = tuple(compute.master.parameters())
        self._copies = () if not compute.pairs else tuple(compute.model.parameters())
        self._stage: Hashable = None
        self._recordings: dict[Hashable, _Recording] = {}
        self._seen: Counter[Hashable] = Counter()
        self._kept: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def num_recorded(self) -> int:
        """Shapes that are recorded now."""
        return len(self._recordings)

    def run(
        self, batch: MicroBatch, train: Callable[[MicroBatch], Tensor], stage: Hashable
    ) -> Tensor:
        """Accumulate the gradients of a micro-batch in the masters.

        Args:
            batch: The rows.
            train: Runs forward and backward and collects the gradients; returns the loss.
            stage: What is trained, how, and from which activations; what was recorded in another
                stage is dropped.

        Returns:
            What `train` returns, a scalar.
        """
        if stage != self._stage:
            self.release()
            self._stage = stage
        is_first = all(p.grad is None for p in self._masters)
        if is_first:
            self._clear_kept()
        # Gradients of the first micro-batch are stored, those of others are added.
        key = (is_first, *_shapes(batch))
        recording = self._recordings.get(key)
        if recording is None and self._is_worth_recording(key, batch):
            recording = self._record(batch, train)
            if recording is not None:
                self._recordings[key] = recording
        if recording is not None:
            return recording.run(batch)
        loss = train(batch)
        self._keep()
        return loss

    def release(self) -> None:
        """Drop all recordings, and the memory that they work in."""
        self._recordings.clear()
        self._seen.clear()
        self._kept.clear()
        if self._recorder is not None:
            self._recorder.release()

    def _is_worth_recording(self, key: Hashable, batch: MicroBatch) -> bool:
        if self._recorder is None or not _is_recordable(batch):
            return False
        self._seen[key] += 1
        return self._seen[key] > _WORTH_RECORDING and len(self._recordings) < _MOST

    def _record(
        self, batch: MicroBatch, train: Callable[[MicroBatch], Tensor]
    ) -> _Recording | None:
        assert self._recorder is not None
        own: MicroBatch = _mapped(batch, {})
        loss = torch.zeros((), device=batch.targets.device)

        def work() -> None:
            loss.copy_(train(own))

        before = [(p, p.grad) for p in (*self._masters, *self._copies)]
        try:
            replay = self._recorder.record(work)
        except Exception as error:  # whatever it is, kernels can be launched one by one
            for parameter, gradient in before:
                parameter.grad = gradient
            self._give_up(error)
            return None
        return _Recording(
            batch=own,
            loss=loss,
            gradients=tuple((p, p.grad) for p in self._masters if p.grad is not None),
            replay=replay,
        )

    def _give_up(self, error: Exception) -> None:
        self.release()
        self._recorder = None
        self._tell(" ".join(str(error).split())[:200] or type(error).__name__)

    def _keep(self) -> None:
        """Keep the masters' gradients where they are, as recordings add to them."""
        if not self._copies and not self._kept:
            self._kept = [(p, p.grad) for p in self._masters if p.grad is not None]

    def _clear_kept(self) -> None:
        if self._kept:
            torch._foreach_zero_([gradient for _, gradient in self._kept])
        for parameter, gradient in self._kept:
            parameter.grad = gradient


def _is_recordable(batch: MicroBatch) -> bool:
    """Tell whether a batch of this shape differs from others in its tensors only."""
    if not isinstance(batch.weight, Tensor):
        return False
    inputs = batch.model.inputs
    if inputs is None:
        return True
    return isinstance(inputs, PackedInputs) and inputs.packing.is_filler is not None


def _leaves(value: object) -> Iterator[Tensor | None]:
    """Yield the tensors of a batch, and None for those that others of its kind have."""
    if value is None or isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name))


def _tensors(batch: MicroBatch) -> list[Tensor]:
    """Return the tensors of a batch, each once."""
    return list({id(leaf): leaf for leaf in _leaves(batch) if leaf is not None}.values())


def _shapes(batch: MicroBatch) -> tuple[Hashable, ...]:
    found = [None if leaf is None else (leaf.shape, leaf.dtype) for leaf in _leaves(batch)]
    return (batch.model.num_blocks, *found)


def _mapped(value: Any, copies: dict[int, Tensor]) -> Any:
    """Copy a batch and its tensors; what is one tensor stays one."""
    if isinstance(value, Tensor):
        return copies.setdefault(id(value), value.clone())
    if isinstance(value, tuple):
        return tuple(_mapped(item, copies) for item in value)
    if isinstance(value, dict):  # attention biases made so far: recorded, too
        return {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        copied = {field.name: _mapped(getattr(value, field.name), copies) for field in fields}
        return dataclasses.replace(value, **copied)
    return value
