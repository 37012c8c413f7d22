"""How a worker process is started, heard and ended; the process is a few lines of Python."""

import os
import queue
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from automl_ft.workers import processes
from automl_ft.workers.base import WorkerDied
from automl_ft.workers.processes import ProcessWorker
from automl_ft.workers.protocol import Keep, Ready, encode

SECONDS = 20
PYTHON = sys.executable
READY = encode(Ready())
HEADER = """
import os, signal, sys, time

def say(text):
    print(text, end="", flush=True)

"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a worker whose process runs the given lines."""
    workers = []

    def start_worker(lines, **arguments):
        program = tmp_path / "program.py"
        header = (
            "import os, signal, sys, time\ndef say(text):\n    print(text, end='', flush=True)\n"
        )
        program.write_text(header + textwrap.dedent(lines))
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec "{PYTHON}" -S "{program}" "$@"\n')
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        events = queue.Queue()
        worker = ProcessWorker(3, events, **arguments)
        worker.events = events
        workers.append(worker)
        return worker

    yield start_worker
    for worker in workers:
        worker.close(at_once=True)


def death(worker):
    event = worker.events.get(timeout=SECONDS)
    assert isinstance(event.message, WorkerDied), event
    assert event.worker == 3
    return event.message


def test_what_it_says_comes_as_events(start):
    worker = start(f"say({READY + READY!r})\nsys.stdin.read()")
    events = [worker.events.get(timeout=SECONDS) for _ in range(2)]
    assert [(event.worker, event.message) for event in events] == [(3, Ready())] * 2


def test_requests_reach_it(start):
    worker = start(f"line = sys.stdin.readline()\nsys.stderr.write(line)\nsay({READY!r})")
    worker.send(Keep(folder="/somewhere"))
    assert worker.events.get(timeout=SECONDS).message == Ready()
    assert '"/somewhere"' in death(worker).last_output


def test_the_command_names_the_worker_s_module_and_leaves_out_the_working_directory(start):
    worker = start("sys.stderr.write(' '.join(sys.argv[1:]))")
    words = death(worker).last_output.split()
    assert (words[0], words[-1]) == ("-P", "automl_ft.workers.main")


def test_death_is_told_with_exit_code_and_last_output(start):
    told = death(start("sys.stderr.write('first\\nlast\\n')\nsys.exit(7)"))
    assert (told.exit_code, told.last_output) == (7, "first\nlast\n")


def test_death_by_a_signal_is_a_negative_exit_code(start):
    assert death(start("os.kill(os.getpid(), signal.SIGKILL)")).exit_code == -signal.SIGKILL


def test_only_the_last_lines_of_its_output_are_kept(start):
    lines = death(start("for n in range(500): print(n, file=sys.stderr)")).last_output.split()
    assert lines == [str(number) for number in range(460, 500)]


def test_message_that_a_kill_tore_is_no_reason_to_wait_forever(start):
    worker = start(f"say({READY!r})\nsay({READY[:10]!r})\nos.kill(os.getpid(), signal.SIGKILL)")
    assert worker.events.get(timeout=SECONDS).message == Ready()
    assert death(worker).exit_code == -signal.SIGKILL


def test_worker_that_talks_nonsense_is_killed(start):
    told = death(start("say('hello\\n')\ntime.sleep(60)"))
    assert told.exit_code == -signal.SIGKILL
    assert "hello" in told.last_output


def test_closed_worker_says_nothing_of_its_end(start):
    worker = start("sys.stdin.read()")
    worker.close()
    assert worker._process.returncode == 0
    assert worker.events.empty()


def test_closing_twice_does_no_harm(start):
    worker = start("sys.stdin.read()")
    worker.close()
    worker.close(at_once=True)
    assert worker._process.returncode == 0


def test_closing_at_once_kills(start):
    worker = start("time.sleep(60)")
    began = time.monotonic()
    worker.close(at_once=True)
    assert worker._process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 10


def test_worker_that_does_not_end_by_itself_is_killed(start, monkeypatch):
    monkeypatch.setattr(processes, "_CLOSE_SECONDS", 0.3)
    worker = start("time.sleep(60)")
    worker.close()
    assert worker._process.returncode == -signal.SIGKILL


def test_requests_to_a_dead_or_closed_worker_are_lost_in_silence(start):
    worker = start("sys.exit(0)")
    death(worker)
    for _ in range(3):
        worker.send(Keep(folder="x" * 100_000))
    worker.close()
    worker.pause()
    assert worker.events.empty()


def test_dead_worker_is_no_zombie(start):
    worker = start("sys.exit(0)")
    death(worker)
    with pytest.raises(ChildProcessError):
        os.waitpid(worker._process.pid, os.WNOHANG)


def test_output_goes_to_the_log_from_then_on(start, tmp_path):
    worker = start("print('early', file=sys.stderr, flush=True)\nsay(sys.stdin.readline())\n"
                   "print('late', file=sys.stderr)")  # fmt: skip
    deadline = time.monotonic() + SECONDS
    while not worker._output and time.monotonic() < deadline:
        time.sleep(0.01)
    log = tmp_path / "logs" / "worker-3.log"
    worker.log_to(log)
    worker.send(Ready())
    assert worker.events.get(timeout=SECONDS).message == Ready()
    assert death(worker).last_output == "early\nlate\n"
    worker.close()
    assert log.read_text() == "late\n"


def test_log_is_appended_to(start, tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    worker = start("sys.stdin.readline()\nprint('after', file=sys.stderr)")
    worker.log_to(log)
    worker.send(Ready())
    death(worker)
    worker.close()
    assert log.read_text() == "before\nafter\n"


def test_ctrl_c_in_the_terminal_does_not_reach_it(start):
    worker = start("print(os.getsid(0) == os.getpid(), file=sys.stderr)")
    assert death(worker).last_output == "True\n"


def test_environment_is_the_supervisor_s_and_what_is_given(start, monkeypatch):
    monkeypatch.setenv("GIVEN_BEFORE", "old")
    worker = start(
        "print(os.environ['GIVEN_BEFORE'], os.environ['EXTRA'], file=sys.stderr)",
        env={"EXTRA": "new"},
    )
    assert death(worker).last_output == "old new\n"


def test_other_workers_do_not_hold_its_input_open(start):
    """A worker must see the end of its input when the supervisor is killed."""
    listing = "print(len(os.listdir('/proc/self/fd')), file=sys.stderr)"
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    first = death(start(listing)).last_output
    start("sys.stdin.read()")
    assert death(start(listing)).last_output == first
