"""`python -m bundle doctor`: everything that can be known before hours are spent.

From cheap to dear: the environment, by the standard library alone (`environment`), the configs (`runs`), the
files of the cases (`data`), memory and disk (`needs`), some real steps (`trial`). A check that fails does not
stop the others; one that makes no sense after it says so.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from bundle.doctor import environment
from bundle.doctor.report import Report, nothing_on_stdout, nothing_stays


def doctor(args_file: Path | None, json: bool, limit: float, ids: dict[str, Any]) -> None:
    """Carry out `bundle.cli.doctor`, whose arguments these are."""
    report = Report(json, limit)
    with nothing_on_stdout():
        begun = time.perf_counter()
        sound = environment.look(report)
        started = time.perf_counter() - begun
        report.show(environment.PART)
        if sound and not report.has_error("temporary"):
            from bundle.doctor.examine import examine

            with nothing_stays():
                examine(report, args_file, ids, started)
    if report.finish() == "error":
        raise typer.Exit(1)
