"""How do files that can be made anew stay under a byte budget, shared by several processes? A leaf.

An entry is a sub-folder: `payload.bin`, `manifest.json` and `lock`. An entry whose manifest is
missing or other than what is asked for, or whose payload has another size or checksum, is never
trusted. The checksum is looked at when a process opens an entry for the first time. Least recently
used entries go first, never one that a process has open. Three kinds of locks see to it:

- `FOLDER/.lock`: held while room is made and while an entry appears, so the sum is always known.
- `FOLDER/.NAME.lock`: held while an entry is made; a second process waits, then finds the entry.
- `ENTRY/lock`: shared while the entry is open, exclusive to remove it. Its mtime tells when the
  entry was last opened or closed.

The kernel gives a lock back when its holder dies, so what a killed process left can be told from
what a living one is at work on. `filelock`, which `files.lock` uses, has no shared locks.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl_ft.files.atomic import atomic_path

_CAN_LOCK = importlib.util.find_spec("fcntl") is not None
"""Not on Windows."""
if _CAN_LOCK:
    import fcntl

__all__ = ["Entry", "QuotaFolder", "WantedEntry"]

_PAYLOAD = "payload.bin"
_MANIFEST = "manifest.json"
_LOCK = "lock"
_FOLDER_LOCK = ".lock"
_VERSION = 2
_OVERHEAD_BYTES = 4096
"""What an entry counts for besides its payload."""
_SPARE_BYTES = 2**30
"""What stays free on the disk: without room for checkpoints the whole search pauses."""
_CHUNK_BYTES = 2**23
_MIB = 2**20
_NO_ENTRY = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EROFS,
        errno.EBUSY,
        # A file system without locks or without mapped files, or a process short of addresses.
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.ENODEV,
        errno.ENOMEM,
    }
)
"""With these the work goes on without an entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedEntry:
    """What an entry must be."""

    name: str
    """Its folder; without path separators, and no dot in front."""
    manifest: Mapping[str, Any]
    """What the payload is, as JSON takes it; an entry of another manifest is replaced."""
    num_bytes: int
    """Size of the payload."""

    def text(self, checksum: str) -> str:
        """Return what stands in the manifest file.

        Args:
            checksum: That of the payload.

        Returns:
            JSON, the same for equal wishes and payloads.
        """
        plain = {"version": _VERSION, "num_bytes": self.num_bytes, **self.manifest}
        return json.dumps({**plain, "checksum": checksum}, indent=2, sort_keys=True) + "\n"


class _BudgetError(OSError):
    """The budget has no room for an entry."""


class Entry:
    """An entry that this process has open: nobody removes it before it is closed."""

    def __init__(self, payload: Path, lease: int) -> None:
        """Store the parts and note the use.

        Args:
            payload: The payload's file.
            lease: Descriptor that holds the entry's lock; owned by the entry from now on.
        """
        self.payload = payload
        self._lease: int | None = lease
        _note_use(lease)

    def close(self) -> None:
        """Let go of the entry; what is mapped of its payload stays valid. May be called twice."""
        lease, self._lease = self._lease, None
        if lease is not None:
            _note_use(lease)
            os.close(lease)


class QuotaFolder:
    """A folder of entries that stays under a byte budget."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """Store where and how much; touches nothing.

        Args:
            folder: The folder, for entries only; made with the first one.
            budget_bytes: What all entries together may take; 0 for none at all.
        """
        self.num_evicted = 0
        """Entries that this object removed to make room."""
        self.num_damaged = 0
        """Payloads that this object found to be other than what was written."""
        self.refusal: str | None = None
        """Why the last `obtain` with a `fill` gave nothing, in words; None where it gave an
        entry."""
        self.is_short = False
        """Whether that was for the budget."""
        self._folder = folder
        self._budget = budget_bytes
        self._is_tidy = False
        self._is_sound_by_file: dict[tuple[int, ...], bool] = {}

    def obtain(self, wanted: WantedEntry, fill: Callable[[Path], None] | None) -> Entry | None:
        """Open an entry, which is made first where it is not there.

        Of several processes that want one entry at once, one makes it and the others wait. The
        payload has its full size, with its blocks, before `fill` is called: mapping it and writing
        to it cannot run into a full disk. `fill` may obtain other entries, never the same one.

        Args:
            wanted: What the entry must be.
            fill: Writes the payload, in place. What it raises passes through, and leaves nothing.
                None only looks.

        Returns:
            The open entry. None where there is no room: it alone is above the budget, or what is
            open takes the rest, or the disk is full or does not take it. None on Windows too.

        Raises:
            OSError: The folder cannot be made or written for a reason that is no lack of room.
        """
        self.refusal, self.is_short = None, False
        if not _CAN_LOCK:
            self.refusal = "this system has no file locks"
            return None
        try:
            if not self._is_tidy:
                self.trim()
            if not 0 < wanted.num_bytes <= self._budget - _OVERHEAD_BYTES:
                raise _BudgetError(errno.EDQUOT, "it is larger than the budget")
            entry = self._open(wanted)
            if entry is None and fill is not None:
                entry = self._make_once(wanted, fill)
            # Not what was said of others, which `fill` may have obtained.
            self.refusal, self.is_short = None, False
            return entry
        except OSError as error:
            self.refusal = error.strerror or str(error)
            self.is_short = isinstance(error, _BudgetError)
            if error.errno in _NO_ENTRY:
                return None
            raise

    def trim(self) -> None:
        """Remove what killed processes left, and what is above the budget and not open."""
        self._is_tidy = True
        if _CAN_LOCK and self._folder.is_dir():
            with _held(self._folder / _FOLDER_LOCK):
                self._make_room(0, is_needed=False)

    def _open(self, wanted: WantedEntry) -> Entry | None:
        folder = self._folder / wanted.name
        lease = _lock(folder / _LOCK, is_shared=True, waits=True)
        if lease is None:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, lease)
            checksum = _trusted_checksum(folder, wanted)
            if checksum is not None and self._is_sound(folder / _PAYLOAD, checksum):
                undo.pop_all()
                return Entry(folder / _PAYLOAD, lease)
        return None

    def _is_sound(self, payload: Path, checksum: str) -> bool:
        """Tell whether a payload is what was written; read once, and again if it is touched."""
        try:
            known = _identity(payload)
            if known not in self._is_sound_by_file:
                self._is_sound_by_file[known] = _checksum(payload) == checksum
                self.num_damaged += not self._is_sound_by_file[known]
        except FileNotFoundError:
            return False
        return self._is_sound_by_file[known]

    def _make_once(self, wanted: WantedEntry, fill: Callable[[Path], None]) -> Entry:
        self._folder.mkdir(parents=True, exist_ok=True)
        with _held(self._folder / f".{wanted.name}.lock"):
            # Whoever held the lock before us may have made it.
            return self._open(wanted) or self._make(wanted, fill)

    def _make(self, wanted: WantedEntry, fill: Callable[[Path], None]) -> Entry:
        target = self._folder / wanted.name
        with contextlib.ExitStack() as undo:
            with contextlib.ExitStack() as appearing, atomic_path(target) as temporary:
                lease = self._reserve(wanted, temporary)
                undo.callback(os.close, lease)
                payload = temporary / _PAYLOAD
                _allocate(payload, wanted.num_bytes)
                fill(payload)
                # Here, not under the folder's lock: it may take seconds.
                _flush(payload)
                text = wanted.text(_checksum(payload))
                (temporary / _MANIFEST).write_text(text, encoding="utf-8")
                self._is_sound_by_file[_identity(payload)] = True
                appearing.enter_context(_held(self._folder / _FOLDER_LOCK))
            undo.pop_all()
        return Entry(target / _PAYLOAD, lease)

    def _reserve(self, wanted: WantedEntry, temporary: Path) -> int:
        """Make room and start the entry at its size, so that others count it, and lock it."""
        with _held(self._folder / _FOLDER_LOCK):
            if not _remove(self._folder / wanted.name):
                raise OSError(errno.EBUSY, "a process has what it would replace open")
            self._make_room(wanted.num_bytes + _OVERHEAD_BYTES, is_needed=True)
            temporary.mkdir()
            with (temporary / _PAYLOAD).open("wb") as file:
                file.truncate(wanted.num_bytes)
            (temporary / _LOCK).touch()
            lease = _lock(temporary / _LOCK, is_shared=True, waits=False)
            assert lease is not None, "nobody else knows of it yet"
            return lease

    def _make_room(self, num_bytes: int, *, is_needed: bool) -> None:
        """Remove entries, least recently used first; none if needed room cannot be had."""
        _remove_rests(self._folder)
        over_budget = sum(map(_size, _folders(self._folder))) + num_bytes - self._budget
        over_disk = _SPARE_BYTES + num_bytes - shutil.disk_usage(self._folder).free
        missing = max(over_budget, over_disk)
        victims = []
        with contextlib.ExitStack() as locks:
            for entry in sorted(_folders(self._folder), key=_last_use):
                if missing <= 0:
                    break
                lock = _lock(entry / _LOCK, is_shared=False, waits=False)
                if lock is not None:
                    locks.callback(os.close, lock)
                    victims.append(entry)
                    missing -= _size(entry)
            if missing > 0 and is_needed:
                if over_budget >= over_disk:
                    raise _BudgetError(errno.EDQUOT, "what is in use leaves too little of it")
                spare = f"{_SPARE_BYTES / _MIB:.0f} MiB"
                raise OSError(errno.ENOSPC, f"the disk would keep less than {spare} free")
            for entry in victims:
                _delete(entry)
        self.num_evicted += len(victims)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file that is made where it is missing and never removed; waits for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, *, is_shared: bool, waits: bool) -> int | None:
    """Lock an entry's lock file; None where it is gone, or held by others and nothing waits."""
    operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, operation | (0 if waits else fcntl.LOCK_NB))
            # While we waited, the entry may have been removed, and made anew with another lock.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                undo.pop_all()
                return descriptor
    return None


def _trusted_checksum(folder: Path, wanted: WantedEntry) -> str | None:
    """Return what the payload's checksum must be; None where the entry is another one."""
    try:
        text = (folder / _MANIFEST).read_text(encoding="utf-8")
        num_bytes = (folder / _PAYLOAD).stat().st_size
        checksum = str(json.loads(text)["checksum"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return checksum if text == wanted.text(checksum) and num_bytes == wanted.num_bytes else None


def _checksum(path: Path) -> str:
    """Return what changes with a file's contents, against accidents rather than intent.

    CRC-32 at 2.7 GiB/s is twice as fast as SHA-256 where the processor helps that, more elsewhere.
    """
    total, chunk = 0, memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            total = zlib.crc32(chunk[:count], total)
    return f"crc32:{total:08x}"


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _allocate(path: Path, num_bytes: int) -> None:
    """Give a file its blocks: a store to a mapped hole kills the process when the disk is full."""
    with path.open("r+b", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        zeros = memoryview(bytes(_CHUNK_BYTES))
        while (left := num_bytes - file.tell()) > 0:
            file.write(zeros[:left])


def _flush(path: Path) -> None:
    """Bring a file to the disk, also what was written to it through a map."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _note_use(lease: int) -> None:
    # The clock that the kernel itself takes ticks too slowly to order entries by.
    now = time.time_ns()
    with contextlib.suppress(OSError):  # only the order of removal depends on it
        os.utime(lease, ns=(now, now))


def _last_use(entry: Path) -> int:
    try:
        return (entry / _LOCK).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _folders(folder: Path) -> list[Path]:
    """List entries, finished or not, by name; call it under the folder's lock."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _size(entry: Path) -> int:
    """Return what an entry counts for; one at work counts at its full size from the start."""
    try:
        return (entry / _PAYLOAD).stat().st_size + _OVERHEAD_BYTES
    except FileNotFoundError:  # its maker gave up a moment ago
        return 0


def _remove_rests(folder: Path) -> None:
    """Remove what killed processes did not finish making or removing."""
    for path in _folders(folder):
        if not (path / _MANIFEST).exists() or path.name.startswith("."):
            _remove(path)


def _remove(entry: Path) -> bool:
    """Remove an entry that nobody has open; tell whether it is gone."""
    lock = _lock(entry / _LOCK, is_shared=False, waits=False)
    if lock is None and (entry / _LOCK).exists():
        return False
    try:
        _delete(entry)
    finally:
        if lock is not None:
            os.close(lock)
    return True


def _delete(entry: Path) -> None:
    """Delete in an order in which a half-deleted entry is never trusted."""
    (entry / _MANIFEST).unlink(missing_ok=True)
    (entry / _PAYLOAD).unlink(missing_ok=True)
    shutil.rmtree(entry, ignore_errors=True)
