"""Ctrl-C and SIGTERM as requests that the loop answers between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    signal: str | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM asks the loop to save and stop after the current step; a second one kills."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
