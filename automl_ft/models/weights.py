"""How are the pretrained tensors of a checkpoint read once, for all models that a process makes?

The files are mapped into memory, so that nothing is read before it is needed and no byte twice.
A model made of them shares them. Frozen parameters stay shared, as nobody writes to them; what a
trial changes is copied for it first (`own_parameters`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["PretrainedWeights", "map_weights", "stamps_of"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PretrainedWeights:
    """The tensors of a checkpoint; nobody may write to them."""

    tensors: Mapping[str, Tensor]
    """Tensors by their name in the files, in the files' types, on the CPU."""
    addresses: frozenset[int]
    """Where their bytes begin."""
    stamps: tuple[tuple[int, int, int], ...]
    """Inode, size and time of change of each file when it was mapped."""

    @property
    def size_mib(self) -> float:
        """MiB of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) / 2**20

    def own_parameters(self, model: nn.Module, names: Collection[str]) -> None:
        """Make parameters of a model its own: copy, in place, those that are shared.

        Args:
            model: Made of these weights, on any device.
            names: Parameters that are going to change.
        """
        for name, parameter in model.named_parameters():
            if name in names and self._holds(parameter):
                parameter.data = parameter.detach().clone()

    def own_buffers(self, model: nn.Module) -> None:
        """Make all buffers of a model its own, in place: a pass through it may change them.

        Args:
            model: Made of these weights, on any device.
        """
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if self._holds(buffer):
                    setattr(module, name, buffer.clone())

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.addresses


def map_weights(files: Collection[Path]) -> PretrainedWeights:
    """Map the weight files of a checkpoint into memory.

    Args:
        files: Its safetensors files.

    Returns:
        Their tensors.

    Raises:
        OSError: A file cannot be read.
        SafetensorError: A file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    stamps = stamps_of(files)
    for file in files:
        tensors.update(load_file(file))
    addresses = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return PretrainedWeights(tensors=tensors, addresses=addresses, stamps=stamps)


def stamps_of(files: Collection[Path]) -> tuple[tuple[int, int, int], ...]:
    """Return what tells in a moment that nobody has written to files since.

    Args:
        files: The files.

    Returns:
        Inode, size and time of change of each.

    Raises:
        OSError: A file is gone.
    """
    found = [file.stat() for file in files]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)
