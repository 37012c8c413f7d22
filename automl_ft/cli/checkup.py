"""Is everything fit for a search: packages, devices, database, studies, disk?

Each check says what it found in one line. What can be mended is mended only when asked for, and
only under the study's lock, so that a running search is never disturbed.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from automl_ft.cli.values import memory, plural, size
from automl_ft.errors import StudyLockedError
from automl_ft.files.child import child_environment

if TYPE_CHECKING:
    from automl_ft.search.folder import StudyFolder
    from automl_ft.storage.database import Database
    from automl_ft.storage.records import TrialRecord
    from automl_ft.storage.store import StudyStore

__all__ = [
    "Check",
    "check_database",
    "check_devices",
    "check_disk",
    "check_packages",
    "check_study",
]

_PACKAGES = ("torch", "transformers", "datasets", "optuna", "sqlalchemy", "scikit-learn", "numpy")
_LOW_BYTES = 5 * 2**30
_TOO_LOW_BYTES = 2**30
"""A checkpoint with its optimiser's state takes about 12 bytes a parameter: 1.3 GB for BERT."""
_TORCH_SECONDS = 180
_TORCH_FACTS = """
import json, os, torch
cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "cores": os.cpu_count(),
    "threads": torch.get_num_threads(),
    "cuda": [[p.name, p.total_memory / 2**20, torch.cuda.is_bf16_supported()] for p in cuda],
    "mps": torch.backends.mps.is_available(),
}))
"""
"""Runs in a process of its own: the command line never pays for torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What one check found."""

    name: str
    """What was looked at."""
    state: Literal["ok", "warn", "problem", "mended"]
    """How it is."""
    finding: str
    """One sentence; with a problem also what to do."""


def check_packages() -> Iterator[Check]:
    """Look at the versions of Python and of the packages that a search needs.

    Yields:
        One check, and one for each package that is missing.
    """
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            finding = f"{package} is not installed: pip install {package}"
            yield Check(name="packages", state="problem", finding=finding)
    yield Check(name="packages", state="ok", finding=", ".join(found))


def check_devices() -> Iterator[Check]:
    """Ask torch for its devices.

    Yields:
        One check for each device, or one problem.
    """
    command = [sys.executable, "-P", "-c", _TORCH_FACTS]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            encoding="utf-8",
            env=child_environment(),
            timeout=_TORCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        finding = f"torch did not answer within {_TORCH_SECONDS} s; is the GPU driver stuck?"
        yield Check(name="devices", state="problem", finding=finding)
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        finding = f"torch cannot be used ({last}). Install it anew: https://pytorch.org"
        yield Check(name="devices", state="problem", finding=finding)
        return
    yield from _devices(json.loads(done.stdout.splitlines()[-1]))


def _devices(facts: dict[str, Any]) -> Iterator[Check]:
    for index, (name, mib, has_bf16) in enumerate(facts["cuda"]):
        precision = "bf16" if has_bf16 else "fp32 only"
        finding = f"cuda:{index}: {name}, {memory(mib)}, {precision}"
        yield Check(name="devices", state="ok", finding=finding)
    if facts["mps"]:
        yield Check(name="devices", state="ok", finding="mps: Apple GPU")
    cpu = f"cpu: {plural(facts['cores'], 'core')}, {plural(facts['threads'], 'torch thread')}"
    if not facts["cuda"] and not facts["mps"]:
        cpu += "; no GPU, so trials run here"
    yield Check(name="devices", state="ok", finding=cpu)


def check_database(database: Database, *, fix: bool) -> Iterator[Check]:
    """Look at a database that could be opened.

    Args:
        database: The database.
        fix: Whether a slow journal mode is mended.

    Yields:
        One check that it is reached; for SQLite also its health and its journal mode.
    """
    shown = database.address.shown
    yield Check(name="database", state="ok", finding=f"{shown} is reached")
    if database.address.file is None:
        return

    def pragma(name: str) -> str:
        return str(database.read(lambda c: c.exec_driver_sql(f"PRAGMA {name}").scalar()))

    health = pragma("quick_check")
    if health != "ok":
        finding = f"the file is damaged ({health}); restore it from a copy"
        yield Check(name="database", state="problem", finding=finding)
    mode = pragma("journal_mode")
    if mode == "wal":
        yield Check(name="database", state="ok", finding="journal mode WAL")
    elif fix and pragma("journal_mode=WAL") == "wal":
        yield Check(name="database", state="mended", finding=f"journal mode was {mode}, is WAL now")
    else:
        finding = f"journal mode {mode}: each write is slower than with WAL"
        yield Check(name="database", state="warn", finding=finding)


def check_study(store: StudyStore, folder: StudyFolder, *, fix: bool) -> Iterator[Check]:
    """Look for trials that a killed search left running, and for checkpoints of no trial.

    Args:
        store: The study.
        folder: Its folder.
        fix: Whether both are mended.

    Yields:
        One check if all is well or the study is being searched, else one for each finding.
    """
    name = f"study {store.name}"
    trials = store.trials()
    if not _stale(trials) and not _leftovers(folder, trials):
        finding = f"{plural(len(trials), 'trial')}, none stale, no leftover checkpoint"
        yield Check(name=name, state="ok", finding=finding)
        return
    try:
        with store.lock(folder.path):
            yield from _mend(store, folder, fix=fix)
    except StudyLockedError:
        finding = "is being searched right now; ask again when that has ended"
        yield Check(name=name, state="ok", finding=finding)


def _mend(store: StudyStore, folder: StudyFolder, *, fix: bool) -> list[Check]:
    """Mend or report, under the study's lock: nobody else changes anything now."""
    name = f"study {store.name}"
    checks = []
    trials = store.trials()
    stale, leftovers = _stale(trials), _leftovers(folder, trials)
    if stale:
        was = f"{_trials(stale)} left running by a search that was killed"
        if fix:
            store.recover_stale()
            checks.append(Check(name=name, state="mended", finding=f"{was}; waiting again"))
        else:
            finding = f"{was}; `automl-ft search` or --fix puts them back in line"
            checks.append(Check(name=name, state="problem", finding=finding))
    if leftovers:
        num_bytes = sum(_num_bytes(folder.trial(number)) for number in leftovers)
        was = f"{size(num_bytes)} of checkpoints that nothing needs ({_trials(leftovers)})"
        if fix:
            for number in leftovers:
                folder.drop_trial(number)
                for kind in ("best", "last"):
                    store.checkpoints.drop(number, kind)
            checks.append(Check(name=name, state="mended", finding=f"{was}; deleted"))
        else:
            checks.append(Check(name=name, state="warn", finding=f"{was}; --fix deletes them"))
    return checks


def _stale(trials: Sequence[TrialRecord]) -> list[int]:
    return [trial.number for trial in trials if trial.state.name == "RUNNING"]


def _leftovers(folder: StudyFolder, trials: Sequence[TrialRecord]) -> list[int]:
    """Find trial folders of no trial, and of trials that were given up."""
    given_up = {trial.number for trial in trials if trial.state.name in ("PRUNED", "FAIL")}
    kept = {trial.number for trial in trials} - given_up
    found = (path.name for path in (folder.path / "trials").glob("*") if path.is_dir())
    return sorted(int(name) for name in found if name.isdecimal() and int(name) not in kept)


def _num_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _trials(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"{'trial' if len(numbers) == 1 else 'trials'} {shown}"


def check_disk(folder: Path) -> Check:
    """Look at the free space where checkpoints go.

    Args:
        folder: The folder; need not exist.

    Returns:
        The check.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    finding = f"{size(free)} free for {folder}"
    if free >= _LOW_BYTES:
        return Check(name="disk", state="ok", finding=finding)
    state: Literal["warn", "problem"] = "problem" if free < _TOO_LOW_BYTES else "warn"
    remedy = "delete studies with `automl-ft delete`, or choose another folder with --output"
    return Check(name="disk", state=state, finding=f"{finding}: {remedy}")
