"""One run at a time in a folder of results: the second is refused before it does anything.

A run holds an advisory lock (POSIX, `fcntl`) on a hidden file in the folder, which says who holds it. The
lock is the process's alone, not that of workers that it forks, and the kernel lets go of it when the process
ends, however it ends: what a killed run leaves is a file that locks nothing. Over NFS the server keeps these
locks for all hosts. Where a file system has none, the run goes on without, and the log says so.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO

from scripts.errors import NO_ROOM, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@dataclass
class _Lock:
    """A lock of this process: its file, the folders made for it, how many runs share it, and since when."""

    file: IO[str]
    made: list[Path]
    runs: int = 0
    begun: float = 0.0


_held: dict[Path, _Lock] = {}


def hold(folder: str | Path, work: str, run: object) -> None:
    """Keep other processes from the same work in the same folder while a run lives.

    Args:
        folder: where the results go; is made where it is missing, and removed at the end if still empty.
        work: "training", "evaluation" or "inference": different works may share a folder.
        run: the lock ends when this object is no more, at the latest with the process.

    Raises:
        InputError: another process is at it; the folder cannot be made or written.
    """
    path = Path(folder).absolute() / f".{work}.lock"
    if fcntl is None:
        return
    missing: list[Path] = []
    try:
        missing = [place for place in path.parents if not place.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _held.get(path) or _Lock(_locked(path), missing)
    except BlockingIOError:
        raise InputError(
            f"output_dir is {path.parent}, where another {work} is at work ({_owner(path)}): wait for its "
            "end, or give another --output_dir"
        ) from None
    except OSError as error:
        _remove_empty(missing)
        full = error.errno in NO_ROOM
        raise InputError(
            f"output_dir is {path.parent}, where nothing can be written "
            f"({'its disk is full' if full else error.strerror}): "
            f"{'make room there, or ' if full else ''}give a folder that can be written or made"
        ) from error
    _held[path] = lock
    lock.runs += 1
    lock.begun = perf_counter()
    weakref.finalize(run, _let_go, path, lock)


def held_for(folder: str | Path, work: str) -> float:
    """Seconds since the latest run of this process began its work in a folder; 0 where none holds it."""
    lock = _held.get(Path(folder).absolute() / f".{work}.lock")
    return perf_counter() - lock.begun if lock else 0.0


def let_go() -> None:
    """End all locks of this process."""
    for path, lock in list(_held.items()):
        lock.runs = 1
        _let_go(path, lock)


def _let_go(path: Path, lock: _Lock) -> None:
    """End a run's share of a lock; with the last one the file goes, and the folders that stayed empty."""
    lock.runs -= 1
    if lock.runs or _held.get(path) is not lock:
        return
    del _held[path]
    with suppress(OSError):
        path.unlink()  # before the lock ends: who has opened this file looks whether it is still there
    lock.file.close()
    _remove_empty(lock.made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, up to one that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _locked(path: Path) -> IO[str]:
    """The file, locked, with this process in it.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be written.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise BlockingIOError from error
            logger.warning("%s cannot be locked (%s): see that no other run writes there", path, error)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                try:
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}")
                    file.flush()
                except OSError:
                    path.unlink()  # nothing of a run that does not begin
                    raise
                return file
        file.close()  # of a run that has just ended


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "a process that has just begun"
    except OSError:
        return "which has just ended"
