"""Runs a piece of work in a child that is forked from a warm process, with limits on memory and time."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts import locks

#: Bytes that a child may take beyond what its parent holds.
MEMORY = 1_500_000_000

#: Seconds that a child may take.
SECONDS = 60


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        status: its exit status; negative, the signal that killed it.
        in_time: whether it ended by itself.
        said: what it wrote to stdout and stderr.
        grown: bytes by which its peak in RAM lay above its parent's.
        seconds: that it took.
    """

    status: int
    in_time: bool
    said: str
    grown: int
    seconds: float


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def run_in_child(work: Callable[[], None], folder: Path) -> Ending:
    """Call a function as a command of its own would, in a folder that is its home.

    Args:
        work: what the command does; an error ends it as Python would end.
        folder: its working directory.
    """
    log, began, held = folder / "said.log", time.monotonic(), _resident()
    child = os.fork()
    if child == 0:
        _be_a_command(work, folder, log)
    in_time = True
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > SECONDS:
            in_time = False
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.01)
    said = log.read_text(errors="replace")
    log.unlink()
    return Ending(
        os.waitstatus_to_exitcode(status),
        in_time,
        said,
        usage.ru_maxrss * 1024 - held,
        time.monotonic() - began,
    )


def _be_a_command(work: Callable[[], None], folder: Path, log: Path) -> None:
    """What the child does; it never comes back."""
    status = 70
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.excepthook = sys.__excepthook__
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY,) * 2)
        os.chdir(folder)
        os.environ.update(HOME=str(folder / "home"), XDG_CACHE_HOME=str(folder / "home/.cache"))
        status = 0
        work()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    finally:
        locks.let_go()  # as at the end of an interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
