"""What a process does when it is asked to end: SIGTERM of a scheduler, Ctrl-C at a terminal.

It ends with exit status 143 or 130 and one sentence, and leaves no half of a file; a training first writes a
checkpoint. A data worker, which its parent ends, leaves Ctrl-C to it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

#: The exit status of a process that a signal ended is this and the signal's number.
STATUS = 128

#: Signals, and how a message calls them.
ASKED = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

Handler = Callable[[int, FrameType | None], Any]


def end_on_signals() -> None:
    """End this process at once when it is asked to; what a host has arranged for itself is left alone."""
    ours = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    for number, default in ours.items():
        if signal.getsignal(number) is default:
            _handle(number, lambda number, _: end(number, "what was not finished is not there"))


def end(number: int, sentence: str) -> None:
    """End this process after a signal.

    Args:
        number: of the signal.
        sentence: what follows from it, to be said after which signal it was.

    Raises:
        SystemExit: with the exit status of the signal.
    """
    atexit.register(_say, f"ended by {ASKED[signal.Signals(number)]}: {sentence}")  # the last word
    raise SystemExit(STATUS + number)


class DeferredSignals:
    """Remembers that the process was asked to end, so that it can do so where it suits; once.

    A context, inside which a first signal is remembered and a second one ends the process.

    Args:
        sentence: what is said of a first signal.

    Attributes:
        number: of the signal that came, 0 before.
        hand_on: is called with the number of each signal.
    """

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.number = 0
        self.hand_on: Callable[[int], object] = lambda number: None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> DeferredSignals:
        for number in ASKED:
            self.before[number] = signal.getsignal(number)
            _handle(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            if handler is not None:  # of another language
                _handle(number, handler)
        self.before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.hand_on(number)
        if self.number:
            end(number, "at once, as asked for twice; what was finished before is kept")
        self.number = number
        _say(f"{ASKED[signal.Signals(number)]}: {self.sentence}")


def _handle(number: int, handler: Any) -> None:
    """Have a signal handled, as far as this is the main thread: Python allows no other to decide that."""
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        elif number != signal.SIGINT:  # a child that has inherited this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    try:
        signal.signal(number, handle if callable(handler) else handler)  # a number stands for the default
    except ValueError:
        return


def _say(sentence: str) -> None:
    """Write a line past Python's buffers, which the signal may have interrupted."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{sentence}\n".encode())
