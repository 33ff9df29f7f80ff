"""What the doctor looks at beyond the environment; imports PyTorch and MONAI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.doctor import data, needs, runs, trial
from bundle.doctor.report import Report

LARGE = "large volumes"


def examine(report: Report, args_file: Path | None, ids: Mapping[str, Any], started: float) -> None:
    """Check configs, data, memory, and a few real steps, as far as each makes sense after those before it.

    Args:
        report: gets the findings.
        args_file: an experiment, or None.
        ids: "config_file" and ids of the command line; a data folder alone is checked alone.
        started: seconds that the imports took.
    """
    with runs.quiet():
        _examine(report, args_file, ids, started)


def _examine(report: Report, args_file: Path | None, ids: Mapping[str, Any], started: float) -> None:
    run = None
    if args_file is not None or "config_file" in ids:
        run = runs.read(report, args_file, ids)
        if run is not None:
            runs.check(report, run)
        report.show(runs.PART)
    else:
        runs.refuse_unread(report, ids)
        report.show(runs.PART)
    if run is None:
        if "dataset_dir" in ids:
            data.check_folder(report, Path(str(ids["dataset_dir"])).expanduser())
            report.show(data.PART)
        return
    cases = data.check(report, run)
    report.show(data.PART)
    skipped = _reason(report, run, cases)
    if cases is not None and skipped is None:
        needs.check(report, run, cases)
        report.show(needs.PART)
        if report.worst(needs.PART) == "error":
            skipped = "there is not the memory or the disk for it"
    if cases is None or skipped is not None:
        report.add(trial.PART, run.kind, f"not tried: {skipped}", "warning", "mend that first")
    else:
        trial.check(report, run, cases, started)
    report.show(trial.PART)


def _reason(report: Report, run: runs.Run, cases: data.Cases | None) -> str | None:
    """Why a trial makes no sense, or None."""
    if run.kind == LARGE:
        return "volumes that are segmented from disk to disk have no case that is small"
    if report.worst(runs.PART) == "error":
        return "the configs have errors"
    if cases is None or (run.kind == "training" and report.worst(data.PART) == "error"):
        return "the data have errors"
    return None
