"""What does Ctrl-C do? Once: finish cleanly. Twice: leave at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupt", "catch_signals"]


class Interrupt:
    """Whether the user asked to stop; may be set from any thread."""

    def __init__(self) -> None:
        """Start without a request."""
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        """Ask the search to pause its trials and end."""
        self._event.set()


@contextmanager
def catch_signals(interrupt: Interrupt) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request, the second into KeyboardInterrupt.

    Does nothing outside the main thread, where Python allows no signal handlers.

    Args:
        interrupt: What the first signal sets.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt:
            raise KeyboardInterrupt
        interrupt.request()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
