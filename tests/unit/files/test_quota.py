"""Entries stay under their budget, appear whole, and are never taken from under their users."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import zlib

import pytest

from automl_ft.files import quota
from automl_ft.files.atomic import remove_leftovers
from automl_ft.files.quota import QuotaFolder, WantedEntry

KB = 1024
OVERHEAD = 4096
AT_WORK = """
import sys, time
from pathlib import Path
from automl_ft.files import quota
quota._SPARE_BYTES = 0
folder, name, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def fill(payload):
    with (folder.parent / "fills").open("a") as log:
        log.write(f"{name}\\n")
    payload.write_bytes(b"h" * 512)
    print("filling", flush=True)
    sys.stdin.readline()
    payload.write_bytes(b"x" * 1024)

wanted = quota.WantedEntry(name=name, manifest={"what": what}, num_bytes=1024)
entry = quota.QuotaFolder(folder, 100_000).obtain(wanted, fill)
print("open" if entry else "none", flush=True)
sys.stdin.readline()
"""
"""Another process: makes an entry, halting in the middle, and keeps it open."""


@pytest.fixture(autouse=True)
def _full_disks_are_fine(monkeypatch):
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "cache"


@pytest.fixture
def start(folder):
    """Start another process that obtains an entry; `talk` is its next line."""
    processes = []

    def start(name, what="a"):
        process = subprocess.Popen(
            [sys.executable, "-c", AT_WORK, str(folder), name, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def said(process):
    return process.stdout.readline().strip()


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def wish(name, num_bytes=KB, **manifest):
    return WantedEntry(name=name, manifest={"what": "a", **manifest}, num_bytes=num_bytes)


def never(payload):
    raise AssertionError("it is there already")


def write(text):
    def fill(payload):
        payload.write_bytes(text.encode() * payload.stat().st_size)

    return fill


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def num_bytes(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def room_for(count, size=KB):
    return count * (size + OVERHEAD)


def kept(store, *entry_names, size=KB):
    """Make entries one after the other and close them."""
    for name in entry_names:
        store.obtain(wish(name, size), write("x")).close()


def test_made_entry_is_found_by_the_next(folder):
    store = QuotaFolder(folder, room_for(2))
    entry = store.obtain(wish("a"), write("x"))
    assert entry.payload.read_bytes() == b"x" * KB
    entry.close()
    again = QuotaFolder(folder, room_for(2)).obtain(wish("a"), never)
    assert again.payload == entry.payload == folder / "a" / "payload.bin"


def test_payload_has_its_full_size_before_it_is_filled(folder):
    sizes = []
    QuotaFolder(folder, room_for(1)).obtain(wish("a"), lambda p: sizes.append(p.stat()))
    assert sizes[0].st_size == KB
    assert sizes[0].st_blocks * 512 >= KB


def test_file_system_that_cannot_allocate_gets_zeros(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(quota, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    entry = QuotaFolder(folder, room_for(1)).obtain(wish("a"), lambda _: None)
    assert entry.payload.read_bytes() == bytes(KB)


def test_system_that_knows_no_allocation_gets_zeros(folder, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    entry = QuotaFolder(folder, room_for(1)).obtain(wish("a"), lambda _: None)
    assert entry.payload.read_bytes() == bytes(KB)


def test_manifest_tells_what_the_payload_is(folder):
    QuotaFolder(folder, room_for(1)).obtain(wish("a", key={"k": 3}), write("x"))
    manifest = json.loads((folder / "a" / "manifest.json").read_text())
    assert manifest.pop("checksum") == f"crc32:{zlib.crc32(b'x' * KB):08x}"
    assert manifest == {"version": 2, "num_bytes": KB, "what": "a", "key": {"k": 3}}


def test_least_recently_used_goes_first(folder):
    store = QuotaFolder(folder, room_for(3))
    kept(store, "a", "b", "c")
    store.obtain(wish("a"), never).close()
    kept(store, "d")
    assert names(folder) == ["a", "c", "d"]
    kept(store, "e")
    assert names(folder) == ["a", "d", "e"]
    assert store.num_evicted == 2


def test_closing_counts_as_use(folder):
    store = QuotaFolder(folder, room_for(2))
    early = store.obtain(wish("a"), write("x"))
    kept(store, "b")
    early.close()
    kept(store, "c")
    assert names(folder) == ["a", "c"]


def test_closing_twice_lets_go_of_nothing_else(folder):
    store = QuotaFolder(folder, room_for(2))
    entry = store.obtain(wish("a"), write("x"))
    entry.close()
    other = os.open(os.devnull, os.O_RDONLY)
    entry.close()
    os.fstat(other)
    os.close(other)


def test_as_many_go_as_must(folder):
    store = QuotaFolder(folder, room_for(4))
    kept(store, "a", "b", "c", "d")
    kept(store, "e", size=2 * KB + OVERHEAD)
    assert names(folder) == ["c", "d", "e"]


def test_open_entry_is_spared(folder):
    store = QuotaFolder(folder, room_for(2))
    entry = store.obtain(wish("a"), write("x"))
    kept(store, "b", "c")
    assert names(folder) == ["a", "c"]
    assert entry.payload.read_bytes() == b"x" * KB


def test_entry_that_another_process_has_open_is_spared(folder, start):
    other = start("a")
    said(other)
    go_on(other)
    assert said(other) == "open"
    store = QuotaFolder(folder, room_for(2))
    kept(store, "b", "c")
    assert names(folder) == ["a", "c"]
    other.kill()
    other.wait()
    kept(store, "d")
    assert names(folder) == ["c", "d"]


def test_nothing_is_removed_where_that_would_not_make_enough_room(folder):
    store = QuotaFolder(folder, room_for(3))
    kept(store, "a")
    entries = [store.obtain(wish(name), write("x")) for name in ("b", "c")]
    assert store.obtain(wish("d", 2 * KB), never) is None
    assert names(folder) == ["a", "b", "c"]
    assert store.num_evicted == 0
    entries[0].close()
    assert store.obtain(wish("d", 2 * KB), write("x")) is not None


@pytest.mark.parametrize("size", [0, KB + 1, 2**62])
def test_entry_that_alone_is_above_the_budget_is_refused(folder, size):
    assert QuotaFolder(folder, room_for(1)).obtain(wish("a", size), never) is None
    assert not folder.exists()


def test_no_budget_keeps_nothing(folder):
    kept(QuotaFolder(folder, room_for(1)), "a")
    assert QuotaFolder(folder, 0).obtain(wish("a"), never) is None
    assert names(folder) == []


def test_smaller_budget_holds_from_the_first_entry_on(folder):
    kept(QuotaFolder(folder, room_for(4)), "a", "b", "c", "d")
    assert QuotaFolder(folder, room_for(2)).obtain(wish("d"), never)
    assert names(folder) == ["c", "d"]


def test_trimming_spares_what_is_open(folder):
    large = QuotaFolder(folder, room_for(3))
    entry = large.obtain(wish("a"), write("x"))
    kept(large, "b", "c")
    QuotaFolder(folder, 0).trim()
    assert names(folder) == ["a"]
    entry.close()


def test_trimming_makes_no_folder(folder):
    QuotaFolder(folder, 0).trim()
    assert not folder.exists()


def test_disk_keeps_room_for_checkpoints(folder, monkeypatch):
    store = QuotaFolder(folder, room_for(9))
    kept(store, "a", "b")
    free = type("Usage", (), {"free": 100 * KB})
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(quota, "_SPARE_BYTES", 100 * KB)
    kept(store, "c")
    assert names(folder) == ["b", "c"]
    monkeypatch.setattr(quota, "_SPARE_BYTES", 200 * KB)
    assert store.obtain(wish("d"), never) is None
    assert names(folder) == ["b", "c"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["allocate", "fill", "flush"])
def test_full_disk_means_no_entry_and_leaves_nothing(folder, monkeypatch, code, where):
    def fail(*_):
        raise OSError(code, "full")

    with monkeypatch.context() as patch:
        if where != "fill":
            patch.setattr(os, {"allocate": "posix_fallocate", "flush": "fsync"}[where], fail)
        fill = fail if where == "fill" else write("x")
        assert QuotaFolder(folder, room_for(1)).obtain(wish("a"), fill) is None
    assert names(folder) == []
    assert QuotaFolder(folder, room_for(1)).obtain(wish("a"), write("x"))


def test_other_errors_of_filling_pass_through_and_leave_nothing(folder):
    def fail(payload):
        payload.write_bytes(b"half")
        raise RuntimeError("out of memory")

    store = QuotaFolder(folder, room_for(1))
    with pytest.raises(RuntimeError, match="out of memory"):
        store.obtain(wish("a"), fail)
    assert names(folder) == []
    assert store.obtain(wish("a"), write("x"))


def test_folder_that_cannot_be_made_is_an_error(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    with pytest.raises(OSError, match="cache"):
        QuotaFolder(folder, room_for(1)).obtain(wish("a"), never)


def test_system_without_locks_has_no_entries(folder, monkeypatch):
    monkeypatch.setattr(quota, "_CAN_LOCK", False)
    store = QuotaFolder(folder, room_for(1))
    store.trim()
    assert store.obtain(wish("a"), never) is None
    assert not folder.exists()


def damage_truncated(entry):
    os.truncate(entry / "payload.bin", 10)


def damage_enlarged(entry):
    os.truncate(entry / "payload.bin", 2 * KB)


def damage_manifest(entry):
    (entry / "manifest.json").write_bytes(b"\xff{torn")


def damage_no_manifest(entry):
    (entry / "manifest.json").unlink()


def damage_no_payload(entry):
    (entry / "payload.bin").unlink()


def damage_no_lock(entry):
    (entry / "lock").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncated,
        damage_enlarged,
        damage_manifest,
        damage_no_manifest,
        damage_no_payload,
        damage_no_lock,
    ],
)
def test_damaged_entry_is_replaced(folder, damage):
    kept(QuotaFolder(folder, room_for(1)), "a")
    damage(folder / "a")
    entry = QuotaFolder(folder, room_for(1)).obtain(wish("a"), write("y"))
    assert entry.payload.read_bytes() == b"y" * KB
    assert sorted(path.name for path in entry.payload.parent.iterdir()) == [
        "lock",
        "manifest.json",
        "payload.bin",
    ]


@pytest.mark.parametrize("other", [wish("a", what="b"), wish("a", KB - 1), wish("a", more=1)])
def test_entry_of_another_manifest_or_size_is_replaced(folder, other):
    kept(QuotaFolder(folder, room_for(1)), "a")
    entry = QuotaFolder(folder, room_for(1)).obtain(other, write("y"))
    assert entry.payload.read_bytes() == b"y" * other.num_bytes


def test_entry_of_another_manifest_is_left_to_who_has_it_open(folder):
    store = QuotaFolder(folder, room_for(2))
    entry = store.obtain(wish("a"), write("x"))
    assert store.obtain(wish("a", what="b"), never) is None
    assert entry.payload.read_bytes() == b"x" * KB


def test_two_processes_at_once_make_an_entry_once(folder, start, tmp_path):
    first = start("a")
    assert said(first) == "filling"
    second = start("a")
    go_on(first)
    assert said(first) == said(second) == "open"
    assert (tmp_path / "data" / "fills").read_text() == "a\n"


def test_many_processes_at_once_make_an_entry_once(folder, start, tmp_path):
    processes = [start("a") for _ in range(4)]
    for process in processes:
        go_on(process)
    assert {said(process) for process in processes} <= {"filling", "open"}
    assert (tmp_path / "data" / "fills").read_text() == "a\n"


def test_process_that_waited_for_one_that_was_killed_makes_it(folder, start, tmp_path):
    first = start("a")
    assert said(first) == "filling"
    second = start("a")
    os.kill(first.pid, signal.SIGKILL)
    assert said(second) == "filling"
    go_on(second)
    assert said(second) == "open"
    assert (folder / "a" / "payload.bin").read_bytes() == b"x" * KB
    assert names(folder) == ["a"]


def test_what_a_killed_process_left_is_removed_by_the_next(folder, start):
    process = start("a")
    assert said(process) == "filling"
    (rest,) = names(folder)
    assert rest.startswith(".a.")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert names(folder) == [rest]
    kept(QuotaFolder(folder, room_for(1)), "b")
    assert names(folder) == ["b"]


def test_what_a_living_process_is_at_work_on_counts_and_stays(folder, start):
    process = start("a")
    assert said(process) == "filling"
    store = QuotaFolder(folder, room_for(2))
    kept(store, "b", "c")
    assert names(folder)[0].startswith(".a.")
    assert names(folder)[1:] == ["c"]
    go_on(process)
    assert said(process) == "open"
    assert names(folder) == ["a", "c"]


def test_sweeping_a_study_removes_what_a_killed_process_left(folder, start):
    process = start("a")
    assert said(process) == "filling"
    process.kill()
    process.wait()
    assert remove_leftovers(folder.parent) == 1
    assert names(folder) == []


@pytest.mark.parametrize("gone", ["manifest.json", "payload.bin"])
def test_removal_that_was_cut_short_is_finished(folder, gone):
    store = QuotaFolder(folder, room_for(3))
    kept(store, "a", "b")
    for name in ("manifest.json", gone):
        (folder / "a" / name).unlink(missing_ok=True)
    kept(store, "c")
    assert names(folder) == ["b", "c"]


def test_lock_of_an_entry_that_was_removed_and_made_anew_meanwhile_is_not_taken(
    folder, monkeypatch
):
    store = QuotaFolder(folder, room_for(1))
    kept(store, "a")
    flock, meanwhile = quota.fcntl.flock, [lambda: kept(store, "b"), lambda: kept(store, "a")]

    def late(descriptor, operation):
        while operation == quota.fcntl.LOCK_SH and meanwhile:
            meanwhile.pop(0)()
        flock(descriptor, operation)

    monkeypatch.setattr(quota.fcntl, "flock", late)
    entry = store.obtain(wish("a"), never)
    assert os.fstat(entry._lease).st_ino == (folder / "a" / "lock").stat().st_ino


def test_one_entry_may_be_made_from_another(folder):
    store = QuotaFolder(folder, room_for(2))

    def from_shallow(payload):
        shallow = store.obtain(wish("shallow"), write("x"))
        payload.write_bytes(shallow.payload.read_bytes().upper())
        shallow.close()

    assert store.obtain(wish("deep"), from_shallow).payload.read_bytes() == b"X" * KB


def test_total_never_exceeds_the_budget(folder):
    draw = random.Random(0)
    budget = 100 * KB
    stores = [QuotaFolder(folder, budget) for _ in range(2)]
    held, most = [], 0

    def watched(payload):
        nonlocal most
        most = max(most, num_bytes(folder))

    for _ in range(150):
        name = f"{draw.randrange(20):02}"
        size = 1 + 7919 * int(name) % (60 * KB)
        entry = draw.choice(stores).obtain(wish(name, size), watched)
        most = max(most, num_bytes(folder))
        if entry is not None:
            held.append(entry)
        while held and draw.random() < 0.5:
            held.pop(draw.randrange(len(held))).close()
    assert budget // 2 < most <= budget
    assert sum(store.num_evicted for store in stores) > 10
