"""What a process does when it is asked to end: SIGTERM of a scheduler, Ctrl-C at a terminal.

It ends with exit status 143 or 130 and one sentence, and leaves no half of a file; a training first writes a
checkpoint. A data worker, which its parent ends, leaves Ctrl-C to it.

GNU timeout and some schedulers send a signal to the process and to the group that it is in, so that it comes
twice at once: what follows within PATIENCE is an echo of the first.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any

#: The exit status of a process that a signal ended is this and the signal's number.
STATUS = 128

#: Signals, and how a message calls them.
ASKED = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

#: Seconds after which another signal is a second one.
PATIENCE = 1.0

Handler = Callable[[int, FrameType | None], Any]


def end_on_signals() -> None:
    """End this process at once when it is asked to; what a host has arranged for itself is left alone."""
    ours = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    times = _Times()

    def handle(number: int, frame: FrameType | None) -> None:
        if not times.is_echo():
            end(number, "what was not finished is not there")

    for number, default in ours.items():
        if signal.getsignal(number) is default:
            _handle(number, handle)


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


class _Times:
    """When signals came, to tell an echo from a signal."""

    def __init__(self) -> None:
        self.first: float | None = None

    def is_echo(self) -> bool:
        """Whether the signal that has just come is an echo of the first one."""
        now = monotonic()
        if self.first is None:
            self.first = now
            return False
        return now - self.first < PATIENCE


class DeferredSignals:
    """Remembers that the process was asked to end, so that it can do so where it suits; once.

    A context, inside which a first signal is remembered and a second one ends the process. A child that is
    forked there is in a process group of its own: what is sent to this group does not end it before its
    parent does.

    Args:
        sentence: what is said of a first signal.

    Attributes:
        number: of the signal that came, 0 before.
        hand_on: is called with the number of each signal.
    """

    #: How many of them are entered.
    entered = 0

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.number = 0
        self.hand_on: Callable[[int], object] = lambda number: None
        self.before: dict[int, Any] = {}
        self.times = _Times()

    def __enter__(self) -> DeferredSignals:
        DeferredSignals.entered += 1
        for number in ASKED:
            self.before[number] = signal.getsignal(number)
            _handle(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        DeferredSignals.entered -= bool(self.before)
        for number, handler in self.before.items():
            if handler is not None:  # of another language
                _handle(number, handler)
        self.before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.times.is_echo():
            return
        self.hand_on(number)
        if self.number:
            end(number, "at once, as asked for twice; what was finished before is kept")
        self.number = number
        more = f"another one, {PATIENCE:g} s or more after this one, ends it at once"
        _say(f"{ASKED[signal.Signals(number)]}: {self.sentence}; {more}")


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


def _leave_group() -> None:
    """Put a child that has just been forked into a process group of its own, see DeferredSignals."""
    if DeferredSignals.entered:
        with suppress(OSError):
            os.setpgid(0, 0)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_group)
