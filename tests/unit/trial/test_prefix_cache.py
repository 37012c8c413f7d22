"""Activations are computed once, shared by processes, and never trusted for another key."""

import dataclasses
import errno
import gc
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from automl_ft.files import quota
from automl_ft.trial.prefix_cache import CacheKey, PrefixCache, as_tensor

KEY = CacheKey(
    weights_hash="w" * 64,
    split_fingerprint="f" * 64,
    max_length=32,
    num_blocks=3,
    dtype="float32",
    kind="tokens",
    versions="torch 2",
)
ROWS, WIDTH = 50, 8
NUM_BYTES = ROWS * WIDTH * 4
OTHER_PROCESS = """
import json, sys, time
from pathlib import Path
from automl_ft.files import quota
from automl_ft.trial.prefix_cache import CacheKey, PrefixCache
quota._SPARE_BYTES = 0
folder = Path(sys.argv[1])

def fill(array):
    with (folder.parent / "fills").open("a") as log:
        log.write("fill\\n")
    time.sleep(0.3)
    array[:] = 7

sys.stdin.readline()
array = PrefixCache(folder, 10**6).open(CacheKey(**json.loads(sys.argv[2])), 50, 8, fill)
print(float(array.sum()), flush=True)
"""


@pytest.fixture(autouse=True)
def _full_disks_are_fine(monkeypatch):
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "activations"


def room_for(count):
    return count * (NUM_BYTES + 4096)


@pytest.fixture
def cache(folder):
    return PrefixCache(folder, room_for(2))


def of(**changes):
    return dataclasses.replace(KEY, **changes)


def sevens(array):
    array[:] = 7


def never(array):
    raise AssertionError("it is there already")


def entries(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_array_is_computed_once_and_found_by_the_next_cache(cache, folder):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    assert (array.shape, array.dtype) == ((ROWS, WIDTH), np.float32)
    assert (array == 7).all()
    found = PrefixCache(folder, room_for(2)).open(KEY, ROWS, WIDTH, never)
    assert (found == 7).all()


def test_array_is_zeroed_and_of_the_keys_type_when_it_is_filled(cache):
    seen = []

    def look(array):
        seen.append((array.shape, array.dtype, array.flags.writeable, array.any()))

    cache.open(of(dtype="bfloat16"), ROWS, WIDTH, look)
    assert seen == [((ROWS, WIDTH), np.uint16, True, False)]


def test_array_is_read_only(cache):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_same_array_is_returned_while_somebody_has_it(cache):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    assert cache.open(KEY, ROWS, WIDTH, never) is array


def test_bfloat16_is_written_and_read_as_tensors_without_a_copy(cache):
    key = of(dtype="bfloat16")
    values = torch.randn(ROWS, WIDTH).bfloat16()
    array = cache.open(key, ROWS, WIDTH, lambda a: as_tensor(a, "bfloat16").copy_(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(array, "bfloat16")
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, values)
    assert tensor.data_ptr() == array.ctypes.data


def test_float32_is_a_tensor_of_the_same_memory(cache):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    tensor = as_tensor(array[10:], "float32")
    assert tensor.shape == (ROWS - 10, WIDTH)
    assert tensor.data_ptr() == array[10:].ctypes.data


def test_array_of_another_type_makes_no_tensor(cache):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    with pytest.raises(ValueError, match="float32 does not hold bfloat16"):
        as_tensor(array, "bfloat16")


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_hash": "x"},
        {"split_fingerprint": "x"},
        {"max_length": 33},
        {"num_blocks": 4},
        {"dtype": "bfloat16"},
        {"kind": "pooled"},
        {"versions": "torch 3"},
    ],
)
def test_every_part_of_the_key_makes_another_entry(cache, changes):
    assert of(**changes).digest != KEY.digest
    cache.open(KEY, ROWS, WIDTH, sevens)
    assert not cache.open(of(**changes), ROWS, WIDTH, lambda _: None).any()


def test_digest_of_a_key_stays_the_same(folder, cache):
    assert KEY.digest == "8b82685f15c6a00a"
    cache.open(KEY, ROWS, WIDTH, sevens)
    assert entries(folder) == [KEY.digest]


def test_whole_key_and_shape_stand_in_the_manifest(cache, folder):
    cache.open(KEY, ROWS, WIDTH, sevens)
    manifest = json.loads((folder / KEY.digest / "manifest.json").read_text())
    assert CacheKey(**manifest["key"]) == KEY
    assert manifest["shape"] == [ROWS, WIDTH]


def test_entry_that_holds_another_key_is_replaced(cache, folder):
    cache.open(KEY, ROWS, WIDTH, sevens)
    place = folder / KEY.digest / "manifest.json"
    place.write_text(place.read_text().replace('"torch 2"', '"torch 1"'))
    assert not cache.open(KEY, ROWS, WIDTH, lambda _: None).any()


@pytest.mark.parametrize("shape", [(ROWS - 1, WIDTH), (WIDTH, ROWS), (2 * ROWS, WIDTH // 2)])
def test_entry_of_another_shape_is_replaced(cache, shape):
    cache.open(KEY, ROWS, WIDTH, sevens)
    array = cache.open(KEY, *shape, lambda _: None)
    assert array.shape == shape
    assert not array.any()


def test_array_in_use_keeps_one_of_another_shape_from_taking_its_place(cache):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    assert cache.open(KEY, WIDTH, ROWS, never) is None
    assert (array == 7).all()


def test_truncated_file_is_replaced(cache, folder):
    cache.open(KEY, ROWS, WIDTH, sevens)
    os.truncate(folder / KEY.digest / "payload.bin", NUM_BYTES - 4)
    assert not cache.open(KEY, ROWS, WIDTH, lambda _: None).any()


def test_two_processes_at_once_compute_an_array_once(folder, tmp_path):
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder)]
    command.append(json.dumps(dataclasses.asdict(KEY)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["2800.0\n"] * 2
    assert (tmp_path / "fills").read_text() == "fill\n"


def test_array_that_nobody_refers_to_any_more_makes_room(cache, folder):
    keys = [of(num_blocks=number) for number in range(5)]
    for key in keys:
        assert (cache.open(key, ROWS, WIDTH, sevens) == 7).all()
    assert entries(folder) == sorted(key.digest for key in keys[-2:])
    assert cache.counts.num_evicted == 3


@pytest.mark.parametrize(
    "use",
    [lambda a: a, lambda a: a[3:], lambda a: as_tensor(a, "float32"), lambda a: a.T.view()],
    ids=["array", "rows", "tensor", "view"],
)
def test_whatever_refers_to_an_array_keeps_it(cache, folder, use):
    used = use(cache.open(KEY, ROWS, WIDTH, sevens))
    for number in range(5):
        cache.open(of(max_length=number), ROWS, WIDTH, sevens)
    assert KEY.digest in entries(folder)
    del used
    gc.collect()
    for number in range(5):
        cache.open(of(max_length=number), ROWS, WIDTH, sevens)
    assert KEY.digest not in entries(folder)


def test_where_all_is_in_use_there_is_no_room(cache):
    held = [cache.open(of(num_blocks=number), ROWS, WIDTH, sevens) for number in range(2)]
    assert cache.open(KEY, ROWS, WIDTH, never) is None
    assert all((array == 7).all() for array in held)


def test_closing_lets_go_of_what_is_still_referred_to(cache, folder):
    held = [cache.open(of(num_blocks=number), ROWS, WIDTH, sevens) for number in range(2)]
    cache.close()
    assert cache.open(KEY, ROWS, WIDTH, sevens) is not None
    assert len(entries(folder)) == 2
    assert all((array == 7).all() for array in held)


def test_closed_cache_opens_again_with_a_lease_of_its_own(cache, folder):
    garbage = cache.open(KEY, ROWS, WIDTH, sevens)
    cache.close()
    array = cache.open(KEY, ROWS, WIDTH, never)
    assert array is not garbage
    del garbage
    cache.open(of(num_blocks=1), ROWS, WIDTH, sevens)
    cache.open(of(num_blocks=2), ROWS, WIDTH, sevens)
    assert KEY.digest in entries(folder)


def test_pooled_vectors_may_be_made_from_cached_tokens(cache):
    def pool(array):
        array[:] = cache.open(KEY, ROWS, WIDTH, sevens)[: len(array)] + 1

    pooled = cache.open(of(kind="pooled"), 5, WIDTH, pool)
    assert (pooled == 8).all()


def test_no_budget_is_no_cache(folder):
    cache = PrefixCache(folder, 0)
    assert cache.open(KEY, ROWS, WIDTH, never) is None
    assert not folder.exists()
    assert cache.counts.num_refused == 1


def test_full_disk_is_no_cache(cache, folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert cache.open(KEY, ROWS, WIDTH, never) is None
    assert entries(folder) == []


def test_failure_while_filling_passes_through(cache, folder):
    def fail(array):
        array[0] = 1
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.open(KEY, ROWS, WIDTH, fail)
    assert entries(folder) == []


def test_entry_that_cannot_be_mapped_is_no_cache_and_let_go(cache, folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOMEM, "cannot map")

    cache.open(KEY, ROWS, WIDTH, sevens)
    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", fail)
        assert cache.open(KEY, ROWS, WIDTH, never) is None
        assert cache.open(of(num_blocks=1), ROWS, WIDTH, never) is None
    for number in range(4, 6):
        cache.open(of(num_blocks=number), ROWS, WIDTH, sevens)
    assert KEY.digest not in entries(folder)


def test_hits_misses_and_refusals_are_counted(cache):
    array = cache.open(KEY, ROWS, WIDTH, sevens)
    for _ in range(2):
        assert cache.open(KEY, ROWS, WIDTH, never) is array
    del array
    cache.open(KEY, ROWS, WIDTH, never)
    cache.open(KEY, 10**6, WIDTH, never)
    counts = cache.counts
    assert (counts.num_hits, counts.num_misses) == (3, 1)
    assert (counts.num_refused, counts.num_evicted) == (1, 0)
