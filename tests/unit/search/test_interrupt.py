"""What signals do while a search runs."""

import os
import signal
import threading

import pytest

from automl_ft.search.interrupt import Interrupt, catch_signals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_a_request_and_the_second_leaves(number):
    interrupt = Interrupt()
    with catch_signals(interrupt):
        assert not interrupt
        send(number)
        assert interrupt
        with pytest.raises(KeyboardInterrupt):
            send(number)


def test_request_may_come_from_the_program_itself():
    interrupt = Interrupt()
    interrupt.request()
    assert interrupt


def test_handlers_are_given_back_whatever_happens():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), catch_signals(Interrupt()):
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before


def test_handler_that_python_does_not_know_becomes_the_default(monkeypatch):
    """Such as one that a library installed in C: `signal.signal` calls it None."""
    real, given = signal.signal, []

    def install(number, handler):
        given.append(handler)
        real(number, handler)

    kept = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(signal, "signal", install)
    try:
        with catch_signals(Interrupt()):
            pass
        assert given[2:] == [signal.SIG_DFL, signal.SIG_DFL]
    finally:
        for number, handler in kept:
            real(number, handler)


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        before = signal.getsignal(signal.SIGINT)
        with catch_signals(Interrupt()):
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
