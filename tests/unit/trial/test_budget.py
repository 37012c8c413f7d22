"""What is free is the least of what the machine and each control group have left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from automl_ft.trial import budget
from automl_ft.trial.budget import (
    free_memory_mib,
    host_memory_mib,
    memory_budget,
    taken_by_siblings_mib,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
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


class Machine:
    """Stands for a device with so much free, beside siblings that hold so much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free: float | None = 1000.0
        self.used = 100.0
        self.siblings = 0.0
        self.most_free: dict[str, float] = {}
        monkeypatch.setattr(budget, "free_memory_mib", lambda device: self.free)
        monkeypatch.setattr(budget, "used_memory_mib", lambda device, mapped: self.used - mapped)
        monkeypatch.setattr(budget, "taken_by_siblings_mib", lambda root, pid: self.siblings)

    def part(
        self, num_workers: int, limit_gib: float | None = None, device: torch.device = CPU
    ) -> float | None:
        return memory_budget(device, num_workers, limit_gib, self.most_free).free_mib


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_workers_share_what_is_free_with_a_margin(machine: Machine) -> None:
    assert machine.part(1) == 700
    assert machine.part(2) == 350
    assert machine.part(1, device=CUDA) == 900
    assert machine.part(2, device=CUDA) == 450


def test_mapped_weights_do_not_count_against_a_limit(machine: Machine) -> None:
    machine.free = None
    plain = memory_budget(CPU, 1, 1.0, machine.most_free)
    found = memory_budget(CPU, 1, 1.0, machine.most_free, mapped_mib=40.0)
    assert (plain.base_mib, plain.free_mib) == (100, 924)
    assert (found.base_mib, found.free_mib) == (60, 964)


def test_a_part_does_not_shrink_when_siblings_fill_theirs(machine: Machine) -> None:
    before = machine.part(2)
    machine.free, machine.siblings = 650.0, 350.0
    assert machine.part(2) == before == 350


def test_a_sibling_that_has_not_loaded_yet_leaves_room_for_it(machine: Machine) -> None:
    machine.siblings = -100.0
    assert machine.part(2) == 315


def test_other_programs_make_parts_smaller(machine: Machine) -> None:
    machine.free = 400.0
    assert machine.part(2) == 140


def test_a_part_is_never_more_than_what_is_free(machine: Machine) -> None:
    machine.free, machine.siblings = 100.0, 900.0
    assert machine.part(2) == 70


def test_a_worker_alone_has_what_is_free_whoever_looks_like_it(machine: Machine) -> None:
    machine.siblings = 500.0
    assert machine.part(1) == 700


def test_a_part_of_a_gpu_follows_from_the_most_that_was_free(machine: Machine) -> None:
    assert machine.part(2, device=CUDA) == 450
    machine.free = 600.0
    assert machine.part(2, device=CUDA) == 450
    machine.free = 300.0
    assert machine.part(2, device=CUDA) == pytest.approx(270)
    machine.free = 1400.0
    assert machine.part(2, device=CUDA) == 630


def test_what_the_process_itself_holds_on_a_gpu_is_not_free(machine: Machine) -> None:
    machine.part(2, device=CUDA)
    machine.free, machine.used = 700.0, 200.0
    assert machine.part(2, device=CUDA) == 405


def test_a_limit_holds_for_all_that_is_in_use(machine: Machine) -> None:
    assert machine.part(1, 0.5) == 412
    assert machine.part(2, 0.5) == 156
    assert machine.part(1, 0.01) == 0


def test_a_limit_above_what_is_free_changes_nothing(machine: Machine) -> None:
    assert machine.part(1, 64.0) == 700


def test_a_limit_is_all_that_is_known_where_the_platform_tells_nothing(machine: Machine) -> None:
    machine.free = None
    assert machine.part(1) is None
    assert machine.part(1, 1.0) == 924


def write_process(
    root: Path, pid: int, parent: int, *, own: int, command: str = "python main"
) -> None:
    folder = root / "proc" / str(pid)
    kib = own * 1024
    # Mapped files are in the resident size, but not a process's own.
    write(
        folder / "status",
        f"Name:\tpython\nPPid:\t{parent}\nVmRSS:\t{kib + 4096} kB\nRssAnon:\t{kib - 1024} kB\n"
        f"RssFile:\t4096 kB\nRssShmem:\t1024 kB\n",
    )
    write(folder / "cmdline", command)


def test_siblings_are_of_the_same_parent_and_command(root: Path) -> None:
    write_process(root, 10, 1, own=300)
    write_process(root, 11, 1, own=900)
    write_process(root, 12, 1, own=250)
    write_process(root, 13, 1, own=7000, command="python other")
    write_process(root, 14, 2, own=7000)
    assert taken_by_siblings_mib(root, 10) == 600 - 50


def test_a_system_that_tells_the_sum_alone_will_do(root: Path) -> None:
    for pid, size in ((10, 100), (11, 150)):
        write(root / f"proc/{pid}/status", f"PPid:\t1\nVmRSS:\t{size * 1024} kB\n")
    assert taken_by_siblings_mib(root, 10) == 50


def test_nobody_is_a_sibling_where_there_is_no_proc(tmp_path: Path) -> None:
    assert taken_by_siblings_mib(tmp_path, 10) == 0
