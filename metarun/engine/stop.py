"""Ctrl-C and SIGTERM as requests that the loop answers between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The name of the signal that asked for a stop, None so far."""

    signal: str | None = None


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request to save and stop after this step; a second one kills.

    Only the main thread may handle signals: in another one nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
