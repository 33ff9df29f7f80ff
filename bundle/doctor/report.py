"""What the doctor found: a row for each check, as a table for people or an object for programs."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Literal

import typer

from scripts.errors import InputError, root_cause
from scripts.tables import Row, table

Status = Literal["ok", "warning", "error"]

#: Width of the columns before what was found, so that the tables of all parts look alike.
STATUS_WIDTH, CHECK_WIDTH = len("warning"), 14

#: The time is up again after so long: Python swallows what is raised while it frees an object. Seconds.
AGAIN = 0.5

#: The check after which other errors are mere consequences.
SETTINGS = "settings"

#: Where PyTorch's compiler keeps its files; it sets this itself.
COMPILED = "TORCHINDUCTOR_CACHE_DIR"


class OutOfTimeError(BaseException):
    """A check took longer than it may. No Exception: what catches those of single cases lets it through."""


@dataclass
class Finding:
    """What one check found.

    Attributes:
        part: "environment", "configs", "data", "memory" or "trial".
        check: its name within the part.
        status: "error": do not go on; "warning": look at it first.
        found: what is there; of a refusal the whole sentence.
        fix: what to do about it; empty where nothing is to do or ``found`` ends with it.
        values: the figures of ``found`` for programs.
    """

    part: str
    check: str
    status: Status = "ok"
    found: str = ""
    fix: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class Report:
    """Collects findings, and shows them part by part as they come.

    Args:
        as_json: print one object at the end, and nothing before.
        limit: seconds that a check may take.
    """

    def __init__(self, as_json: bool, limit: float) -> None:
        self.as_json = as_json
        self.limit = limit
        self.rows: list[Finding] = []
        self._output = sys.stdout

    def add(
        self, part: str, check: str, found: str, status: Status = "ok", fix: str = "", **values: Any
    ) -> None:
        """Add a finding; see `Finding`."""
        self.rows.append(Finding(part, check, status, found, fix, values))

    @contextmanager
    def check(self, part: str, check: str) -> Iterator[Finding]:
        """One check, which fills in its finding: whatever happens within becomes rows.

        An InputError becomes an error with its sentence, any other error one with its kind, more time than
        the limit a warning. What `scripts` warns of in the log becomes a warning each.
        """
        row = Finding(part, check)
        place = len(self.rows)
        try:
            with _heard() as said, _at_most(self.limit):
                yield row
        except OutOfTimeError:
            row.status, row.found = "warning", f"not done within {self.limit:g} s"
            row.fix = "give it more with --limit"
        except Exception as error:
            cause = root_cause(error)
            row.status, row.found = "error", str(cause)
            if not isinstance(cause, InputError) and self.has_error(SETTINGS):
                row.status, row.found = "warning", "not checked, as the settings have errors"
            elif not isinstance(cause, InputError):
                lines = str(cause).strip().splitlines() or [""]
                row.found = f"{type(cause).__name__}: {lines[0]}"
                row.fix = "a run would end with the same: its traceback says where"
        if row.found:
            self.rows.insert(place, row)
        self.rows += [Finding(part, check, "warning", text) for text in dict.fromkeys(said)]

    def has_error(self, *checks: str) -> bool:
        """Whether one of some checks found an error."""
        return any(row.check in checks and row.status == "error" for row in self.rows)

    def worst(self, *parts: str) -> Status:
        """The worst status in some parts, or in all."""
        found = {row.status for row in self.rows if not parts or row.part in parts}
        return "error" if "error" in found else "warning" if "warning" in found else "ok"

    def begin(self, part: str, what: str) -> None:
        """Say that a part begins that takes a while."""
        typer.secho(f"doctor: {part}: {what}", err=True, dim=True)

    def show(self, part: str) -> None:
        """Print the findings of a part that is done."""
        lines: list[Row] = []
        for row in (row for row in self.rows if row.part == part):
            texts = row.found.splitlines() + ([f"fix: {row.fix}"] if row.fix else [])
            for index, text in enumerate(texts):
                first = index == 0
                lines.append(
                    {
                        "": (row.status if first else "").ljust(STATUS_WIDTH),
                        part: (row.check if first else "").ljust(CHECK_WIDTH),
                        "found": text,
                    }
                )
        if lines and not self.as_json:
            self._output.write(f"{table(['', part, 'found'], lines, names=3)}\n\n")
            self._output.flush()

    def finish(self) -> Status:
        """Print the object, or the last line, and give the worst status of all."""
        status = self.worst()
        counts = {name: sum(row.status == name for row in self.rows) for name in ("error", "warning")}
        if self.as_json:
            content = {"status": status, "checks": [asdict(row) for row in self.rows]}
            self._output.write(json.dumps(content, indent=2, default=str) + "\n")
        else:
            told = "go on" if status != "error" else "mend the errors first"
            self._output.write(f"{counts['error']} error(s), {counts['warning']} warning(s): {told}\n")
        self._output.flush()
        return status


@contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Send what any library prints to where progress goes."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def nothing_stays() -> Iterator[None]:
    """Have temporary files of all kinds in one folder, which goes; even PyTorch's compiler leaves some."""
    before, compiled = tempfile.tempdir, os.environ.get(COMPILED)
    with tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
            os.environ.pop(COMPILED, None)
            os.environ.update({} if compiled is None else {COMPILED: compiled})


def stop_ringing() -> None:
    """After an OutOfTimeError, to do what needs no time to speak of."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What `scripts` warns of in the log meanwhile; its errors come as problems or exceptions too."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING and record.name.partition(".")[0] == "scripts":
                said.append(record.getMessage())

    ear = Ear(logging.WARNING)
    logging.root.addHandler(ear)
    try:
        yield said
    finally:
        logging.root.removeHandler(ear)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in what takes longer; in the main thread of a system with timers alone."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        stop_ringing()
        signal.signal(signal.SIGALRM, before)
