"""A payload that is other than what was written is never given out; the check is made once."""

import errno

import pytest

from automl_ft.files import quota
from automl_ft.files.quota import QuotaFolder, WantedEntry

SIZE = 3000
WISH = WantedEntry(name="a", manifest={"what": "a"}, num_bytes=SIZE)


@pytest.fixture(autouse=True)
def _full_disks_are_fine(monkeypatch):
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)


@pytest.fixture
def folder(tmp_path):
    """Return a folder that holds the entry, made by a process that is gone."""
    folder = tmp_path / "cache"
    QuotaFolder(folder, 10**5).obtain(WISH, filled(b"x")).close()
    return folder


def filled(text):
    return lambda payload: payload.write_bytes(text * SIZE)


def never(payload):
    raise AssertionError("it is there already")


def flip(payload, place):
    with payload.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0b100]))


@pytest.fixture
def reads(monkeypatch):
    """Return the paths whose checksum was worked out."""
    found, own = [], quota._checksum

    def checksum(path):
        found.append(path.name)
        return own(path)

    monkeypatch.setattr(quota, "_checksum", checksum)
    return found


@pytest.mark.parametrize("place", [0, 1234, SIZE - 1])
def test_one_flipped_bit_has_the_entry_made_anew(folder, place):
    flip(folder / "a" / "payload.bin", place)
    store = QuotaFolder(folder, 10**5)
    assert store.obtain(WISH, filled(b"y")).payload.read_bytes() == b"y" * SIZE
    assert store.num_damaged == 1


def test_who_only_looks_gets_no_damaged_entry(folder):
    flip(folder / "a" / "payload.bin", 7)
    store = QuotaFolder(folder, 10**5)
    assert store.obtain(WISH, None) is None
    assert store.obtain(WISH, None) is None
    assert store.num_damaged == 1


def test_checksum_may_not_be_missing(folder):
    manifest = folder / "a" / "manifest.json"
    lines = [line for line in manifest.read_text().splitlines() if "checksum" not in line]
    manifest.write_text("\n".join(lines))
    assert QuotaFolder(folder, 10**5).obtain(WISH, None) is None


def test_each_process_reads_a_payload_once(folder, reads):
    for _ in range(2):
        store = QuotaFolder(folder, 10**5)
        for _ in range(3):
            store.obtain(WISH, never).close()
    assert reads == ["payload.bin"] * 2


def test_who_made_an_entry_need_not_check_it(folder, reads):
    store = QuotaFolder(folder, 10**5)
    other = WantedEntry(name="b", manifest={}, num_bytes=SIZE)
    store.obtain(other, filled(b"y")).close()
    store.obtain(other, never).close()
    assert reads == ["payload.bin"]  # to write it down


def test_payload_that_was_touched_is_checked_again(folder):
    store = QuotaFolder(folder, 10**5)
    store.obtain(WISH, never).close()
    flip(folder / "a" / "payload.bin", 7)
    assert store.obtain(WISH, None) is None


def test_damaged_entry_that_another_has_open_is_left_to_it(folder):
    other = QuotaFolder(folder, 10**5).obtain(WISH, never)
    flip(folder / "a" / "payload.bin", 7)
    store = QuotaFolder(folder, 10**5)
    assert store.obtain(WISH, never) is None
    assert "open" in store.refusal
    assert other.payload.exists()


def test_payload_that_the_disk_does_not_give_back_is_no_entry(folder, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(quota, "_checksum", fail)
    store = QuotaFolder(folder, 10**5)
    assert store.obtain(WISH, never) is None
    assert store.refusal == "bad sector"
    assert not store.is_short


def test_refusal_tells_what_is_short(folder, monkeypatch):
    large = WantedEntry(name="b", manifest={}, num_bytes=10**5)
    store = QuotaFolder(folder, 10**5)
    assert store.obtain(large, never) is None
    assert (store.is_short, store.refusal) == (True, "it is larger than the budget")
    held = store.obtain(WISH, never)
    medium = WantedEntry(name="b", manifest={}, num_bytes=90_000)
    assert store.obtain(medium, never) is None
    assert (store.is_short, store.refusal) == (True, "what is in use leaves too little of it")
    held.close()
    assert store.obtain(medium, filled(b"y")) is not None
    assert (store.is_short, store.refusal) == (False, None)
    monkeypatch.setattr(quota, "_SPARE_BYTES", 2**62)
    small = WantedEntry(name="c", manifest={}, num_bytes=1)
    assert store.obtain(small, never) is None
    assert not store.is_short
    assert "disk would keep less than" in store.refusal


def test_entry_made_on_the_way_leaves_no_refusal_behind(folder):
    store = QuotaFolder(folder, 10**5)
    large = WantedEntry(name="c", manifest={}, num_bytes=10**6)

    def fill(payload):
        assert store.obtain(large, never) is None
        assert store.is_short

    assert store.obtain(WantedEntry(name="b", manifest={}, num_bytes=9), fill)
    assert (store.is_short, store.refusal) == (False, None)
