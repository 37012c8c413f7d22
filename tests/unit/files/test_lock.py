"""One process at a time works on a study."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from automl_ft.errors import StorageError, StudyLockedError
from automl_ft.files.lock import short_lock, study_lock

HOLD = """
import sys, time
from automl_ft.files.lock import study_lock
with study_lock(sys.argv[1], "demo"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `demo.lock`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "demo.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(path):
    with study_lock(path, "demo"):
        return True


def test_second_process_is_refused_with_the_holder_named(tmp_path, holder):
    path = tmp_path / "demo.lock"
    with pytest.raises(StudyLockedError) as caught:
        take(path)
    message = str(caught.value)
    for part in ("`demo`", f"`{path}`", f"process {holder.pid}", socket.gethostname()):
        assert part in message


def test_lock_goes_with_a_killed_holder(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert take(tmp_path / "demo.lock")


def test_second_lock_in_one_process_is_refused(tmp_path):
    with study_lock(tmp_path / "a", "demo"):
        with pytest.raises(StudyLockedError, match=f"process {os.getpid()}"):
            take(tmp_path / "a")
        assert take(tmp_path / "b")


def test_lock_is_free_after_the_block_even_if_it_failed(tmp_path):
    def fail():
        with study_lock(tmp_path / "a", "demo"):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert take(tmp_path / "a")


def test_refused_attempt_leaves_the_holder_known(tmp_path):
    with study_lock(tmp_path / "a", "demo"):
        for _ in range(2):
            with pytest.raises(StudyLockedError, match=f"process {os.getpid()}"):
                take(tmp_path / "a")


def test_holder_that_is_not_known_is_another_process(tmp_path):
    with study_lock(tmp_path / "a", "demo"):
        (tmp_path / "a.holder").write_text("{torn")
        with pytest.raises(StudyLockedError, match="by another process"):
            take(tmp_path / "a")


def test_folder_of_the_lock_is_created(tmp_path):
    assert take(tmp_path / "deep" / "er" / "a")


def test_folder_that_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="lock file"):
        take(tmp_path / "file" / "a")


def test_short_lock_waits_for_its_turn(tmp_path):
    order = []

    def second():
        with short_lock(tmp_path / "a.lock", 10):
            order.append("second")

    with short_lock(tmp_path / "a.lock", 10):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_short_lock_does_not_wait_for_ever(tmp_path):
    with (
        short_lock(tmp_path / "a.lock", 10),
        pytest.raises(OSError, match=r"a\.lock"),
        short_lock(tmp_path / "a.lock", 0.05),
    ):
        pass


def test_short_lock_makes_its_folder_or_raises_an_os_error(tmp_path):
    with short_lock(tmp_path / "deep" / "a.lock", 1):
        pass
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"), short_lock(tmp_path / "file" / "a.lock", 1):
        pass
