"""Where do activations of frozen layers lie, so that each is computed once for all trials?

What computes and reads them is elsewhere. An array is a lease: as long as anything refers to it, or
to a view or a tensor made of it, no process removes its file; after that any process may, the one
that made it included. So a search over many keys makes room for itself, and nobody counts uses.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import mmap
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from automl_ft.files.checksum import sha256_bytes
from automl_ft.files.quota import Entry, QuotaFolder, WantedEntry

__all__ = ["CacheCounts", "CacheKey", "PrefixCache", "as_tensor"]

_STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "tf32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
}
"""NumPy has no bfloat16: its bits are kept."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MIB = 2**20
_SETTING = "`training.activation_cache_gib`"
_WITHOUT = "They are computed at every step instead: slower, with the same results."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKey:
    """Everything that cached activations depend on."""

    weights_hash: str
    """SHA-256 of the checkpoint's weights, and of its config, tokenizer and code."""
    split_fingerprint: str
    """Fingerprint of the split's rows."""
    max_length: int
    """Tokens that a row is cut to."""
    num_blocks: int
    """Frozen blocks whose output it is, from 0 (only embeddings) up."""
    dtype: str
    """`float32` or `bfloat16`, or `tf32`: float32 of shortened factors."""
    kind: str
    """`tokens` for a row of the array per token, `pooled` for one per row of the split."""
    versions: str
    """Versions of what computed it."""

    @property
    def digest(self) -> str:
        """The name of the entry: 16 hex digits; the whole key stands in its manifest."""
        plain = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return sha256_bytes(plain.encode("utf-8"))[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheCounts:
    """What a cache has done so far in this process."""

    num_hits: int
    """Arrays that were there, or that another process made while this one waited."""
    num_misses: int
    """Arrays that were computed, or begun, here."""
    num_refused: int
    """Arrays for which there was no room."""
    num_evicted: int
    """Arrays that were removed here to make room."""


class PrefixCache:
    """Arrays on disk under a byte budget, shared by the processes of a study.

    Each process has one of its own; within it one thread at a time may use it.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """Store where and how much; touches nothing.

        Args:
            folder: The study's folder of activations; made with the first array.
            budget_bytes: What all arrays together may take on disk; 0 for no cache.
        """
        self._store = QuotaFolder(folder, budget_bytes)
        self._arrays: weakref.WeakValueDictionary[str, NDArray[Any]] = weakref.WeakValueDictionary()
        self._entries: dict[str, Entry] = {}
        self._folder = folder
        self._budget = budget_bytes
        self._said: set[str] = set()
        self._num_hits = 0
        self._num_misses = 0
        self._num_refused = 0

    @property
    def counts(self) -> CacheCounts:
        """Hits, misses, refusals and evictions so far."""
        return CacheCounts(
            num_hits=self._num_hits,
            num_misses=self._num_misses,
            num_refused=self._num_refused,
            num_evicted=self._store.num_evicted,
        )

    def open(
        self, key: CacheKey, num_rows: int, width: int, fill: Callable[[NDArray[Any]], None] | None
    ) -> NDArray[Any] | None:
        """Map an array, which is computed first where it is not there.

        Of several processes that want one array at once, one computes it and the others wait. An
        array that is not what the key says, or of another shape, size or checksum, is replaced.
        Where files fail in any way there is no array; why is logged once.

        Args:
            key: What the array depends on.
            num_rows: Its rows, 1 or more.
            width: Its columns, 1 or more.
            fill: Writes all of a zeroed array of that shape, in place; it may open arrays of
                other keys. What it raises passes through, and leaves nothing. None only looks.

        Returns:
            The array, read-only, shape (num_rows, width), float32, or uint16 that hold the bits
            of bfloat16 (see `as_tensor`); the same one while somebody refers to it. None where
            there is no room for it, or no way to keep it: then the caller computes without a cache.
        """
        shape = (num_rows, width)
        array = self._arrays.get(key.digest)
        if array is not None and array.shape == shape:
            self._num_hits += 1
            return array
        is_new = False

        def write(payload: Path) -> None:
            nonlocal is_new
            is_new = True
            assert fill is not None
            fill(np.memmap(payload, dtype=_STORED[key.dtype], mode="r+", shape=shape))

        array = self._obtain(key, shape, None if fill is None else write)
        self._num_misses += is_new
        self._num_hits += array is not None and not is_new
        self._num_refused += array is None and fill is not None
        return array

    def is_whole(self, array: NDArray[Any]) -> bool:
        """Tell whether the file of an array still has its size; asks the system, reads nothing.

        What lay beyond the end of a file that somebody cut short cannot be read: the attempt kills
        the process. A file that was removed stays whole for whoever has it.

        Args:
            array: From `open`.

        Returns:
            False once it must not be read any more.
        """
        mapped: Any = array.base  # the `mmap` that `_map` made
        try:
            is_whole = bool(mapped.size() >= array.nbytes)
        except OSError:
            is_whole = False
        if not is_whole:
            self._say("cut", f"Activations in `{self._folder}` were cut short. {_WITHOUT}")
        return is_whole

    def close(self) -> None:
        """Let go of everything now, even where garbage still refers to it; usable again after.

        Arrays that are still referred to stay valid, but their files may be removed from now on.
        """
        self._arrays.clear()
        for entry in self._entries.values():
            entry.close()
        self._entries.clear()

    def _obtain(
        self, key: CacheKey, shape: tuple[int, int], write: Callable[[Path], None] | None
    ) -> NDArray[Any] | None:
        """Open and map an array; say once why there is none where one was asked for."""
        wanted, store = _wanted(key, shape), self._store
        num_damaged = store.num_damaged
        try:
            entry = store.obtain(wanted, write)
        except OSError:  # a folder that is read-only, or was removed meanwhile
            entry = None
        if store.num_damaged > num_damaged:
            place = self._folder / wanted.name
            self._say(f"damaged {place}", f"`{place}` is damaged. It is not used but made anew.")
        if entry is not None:
            return self._map(key, shape, entry)
        if store.is_short:
            if write is not None:
                self._say_short(wanted.num_bytes)
        elif store.refusal is not None:
            text = f"No activations are kept in `{self._folder}`: {store.refusal}. {_WITHOUT}"
            self._say(store.refusal, text)
        return None

    def _say_short(self, num_bytes: int) -> None:
        """Log that the budget is too small, once for all processes of a study."""
        if not self._budget:
            return  # as the user wants it
        rest = "" if num_bytes > self._budget else ", and what is in use leaves too little of it"
        text = (
            f"Activations of frozen blocks that take {math.ceil(num_bytes / _MIB)} MiB are not"
            f" kept: {_SETTING} is {self._budget / 2**30:.3g} ({self._budget // _MIB} MiB){rest}."
            f" {_WITHOUT} Set a larger value to keep them."
        )
        mark = self._folder / f".said-{self._budget}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # then each process says it once
        self._say("short", text)

    def _say(self, subject: str, text: str) -> None:
        """Log something once."""
        if subject not in self._said:
            self._said.add(subject)
            _log.warning("%s", text)

    def _map(self, key: CacheKey, shape: tuple[int, int], entry: Entry) -> NDArray[Any] | None:
        num_bytes = math.prod(shape) * _STORED[key.dtype].itemsize
        try:
            with entry.payload.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            # Too little address space, say, or a file that was cut short since it was looked at:
            # no cache, but no failed trial either.
            entry.close()
            text = f"No activations are read from `{self._folder}`: {error}. {_WITHOUT}"
            self._say(str(error), text)
            return None
        array: NDArray[Any] = np.ndarray(shape, _STORED[key.dtype], buffer=mapped)
        # Views and tensors keep the array alive, and so the entry open.
        weakref.finalize(array, entry.close)
        self._arrays[key.digest] = array
        self._entries[key.digest] = entry
        return array


def as_tensor(array: NDArray[Any], dtype: str) -> torch.Tensor:
    """View an array of the cache, or the one that `fill` is given, as a tensor without a copy.

    NOTE: torch knows no read-only tensors. Writing to one made of an opened array kills the
    process: better than activations that are silently wrong in the trials to come.

    Args:
        array: The array, or rows of it.
        dtype: Its key's `dtype`.

    Returns:
        A tensor on the CPU of the same shape, of type `dtype`; it keeps the array alive.

    Raises:
        ValueError: The array does not hold that type.
    """
    if array.dtype != _STORED[dtype]:
        raise ValueError(f"An array of {array.dtype} does not hold {dtype}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(array).view(_DTYPES[dtype])


def _wanted(key: CacheKey, shape: tuple[int, int]) -> WantedEntry:
    manifest = {"key": dataclasses.asdict(key), "shape": list(shape)}
    num_bytes = math.prod(shape) * _STORED[key.dtype].itemsize
    return WantedEntry(name=key.digest, manifest=manifest, num_bytes=num_bytes)
