"""What is free is the least of what the machine and each control group have left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from automl_ft.trial import budget
from automl_ft.trial.budget import free_memory_mib, host_memory_mib, memory_budget

CPU = torch.device("cpu")
MIB = 1024 * 1024


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB available, in no control group."""
    write(tmp_path / "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n")
    return tmp_path


def write_v2(root: Path, path: str, limit: str, used: int, cached: int = 0) -> None:
    folder = root / "sys/fs/cgroup" / path
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used * MIB}\n")
    write(folder / "memory.stat", f"anon 5\ninactive_file {cached * MIB}\n")


def test_a_machine_without_groups_has_what_is_available(root: Path) -> None:
    assert host_memory_mib(root) == 8192


def test_nothing_is_known_without_proc(tmp_path: Path) -> None:
    assert host_memory_mib(tmp_path) is None


def test_a_group_of_version_2_bounds_it(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/box\n")
    write_v2(root, "box", str(1000 * MIB), used=700)
    assert host_memory_mib(root) == 300


def test_cached_files_of_a_group_are_free(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/box\n")
    write_v2(root, "box", str(1000 * MIB), used=700, cached=200)
    assert host_memory_mib(root) == 500


def test_a_group_around_it_bounds_it(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/outer/box\n")
    write_v2(root, "outer/box", str(1000 * MIB), used=100)
    write_v2(root, "outer", str(600 * MIB), used=500)
    assert host_memory_mib(root) == 100


def test_a_group_without_a_limit_bounds_nothing(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/box\n")
    write_v2(root, "box", "max", used=700)
    assert host_memory_mib(root) == 8192


def test_a_container_that_sees_its_own_group_as_the_root_is_bounded(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/host/path/of/the/box\n")
    write_v2(root, "", str(1000 * MIB), used=400)
    assert host_memory_mib(root) == 600


def test_a_group_of_version_1_bounds_it(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:cpu,cpuacct:/\n3:memory:/box\n0::/\n")
    folder = root / "sys/fs/cgroup/memory/box"
    write(folder / "memory.limit_in_bytes", f"{1000 * MIB}\n")
    write(folder / "memory.usage_in_bytes", f"{900 * MIB}\n")
    write(folder / "memory.stat", f"cache 5\ntotal_inactive_file {50 * MIB}\n")
    assert host_memory_mib(root) == 150


def test_this_machine_has_some() -> None:
    free = free_memory_mib(CPU)
    assert free is None or 10 < free < 10**9


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_memory_mib", lambda device: 1000.0)
    monkeypatch.setattr(budget, "used_memory_mib", lambda device: 100.0)


@pytest.mark.usefixtures("free")
def test_workers_share_what_is_free_with_a_margin() -> None:
    assert memory_budget(CPU, 1, None).free_mib == 700
    assert memory_budget(CPU, 2, None).free_mib == 350
    assert memory_budget(torch.device("cuda"), 1, None).free_mib == 900


@pytest.mark.usefixtures("free")
def test_a_limit_holds_for_all_that_is_in_use() -> None:
    assert memory_budget(CPU, 1, 0.5).free_mib == 412
    assert memory_budget(CPU, 2, 0.5).free_mib == 156
    assert memory_budget(CPU, 1, 0.01).free_mib == 0


@pytest.mark.usefixtures("free")
def test_a_limit_above_what_is_free_changes_nothing() -> None:
    assert memory_budget(CPU, 1, 64.0).free_mib == 700


def test_a_limit_is_all_that_is_known_where_the_platform_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "free_memory_mib", lambda device: None)
    monkeypatch.setattr(budget, "used_memory_mib", lambda device: 100.0)
    assert memory_budget(CPU, 1, None).free_mib is None
    assert memory_budget(CPU, 1, 1.0).free_mib == 924
