"""Scores of many cases: summed up, written, read again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import InputError
from scripts.files import read_json, write_csv, write_json

Row = dict[str, Any]

#: What a summary calls the mean over the classes of each case, and a case whose rows have no class.
OVERALL = "mean"


#: What is told where not all is annotated; the share of the voxels fills it in.
STANDS_ON = "the scores stand on the %s of the voxels that are annotated, and say nothing of the others"


def annotated_share(shares: Sequence[float]) -> dict[str, float]:
    """What a summary says of it: "annotated", the mean over the cases, unless all are annotated whole."""
    return {"annotated": mean_of(shares)} if any(share < 1 for share in shares) else {}


def mean_of(values: Sequence[float]) -> float:
    """The mean of what is not NaN; NaN where nothing is."""
    counted = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted else math.nan


def summarize(rows: Sequence[Row], scores: Sequence[str]) -> list[Row]:
    """Mean, standard deviation, median, minimum, maximum and number of cases of every score.

    Args:
        rows: dictionaries with "case", "class" where there are several, and the scores; NaN says nothing.
        scores: which of them.

    Returns:
        One dictionary for each class and score, and for the mean over each case's classes (class OVERALL).

    Raises:
        InputError: two rows of one case and class, as two cases of one name have.
    """
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        of_case, name = cases.setdefault(row["case"], {}), row.get("class", OVERALL)
        if name in of_case:
            raise InputError(f"several cases are called {row['case']!r}: give each an id of its own")
        of_case[name] = row
    classes = list(dict.fromkeys(row.get("class", OVERALL) for row in rows))
    entries = []
    for score in scores:
        columns = {name: [case[name][score] for case in cases.values() if name in case] for name in classes}
        columns[OVERALL] = [mean_of([row[score] for row in case.values()]) for case in cases.values()]
        entries += [{"class": name, "score": score, **_statistics(columns[name])} for name in columns]
    return entries


def _statistics(values: Sequence[float]) -> Row:
    counted = np.array([value for value in values if not math.isnan(value)])
    some, several = len(counted) > 0, len(counted) > 1
    return {
        "mean": float(counted.mean()) if some else None,
        "std": float(counted.std(ddof=1)) if several else None,
        "median": float(np.median(counted)) if some else None,
        "min": float(counted.min()) if some else None,
        "max": float(counted.max()) if some else None,
        "cases": len(counted),
    }


def mean_rows(summary: Sequence[Row]) -> list[Row]:
    """The means of a summary as rows, one a class."""
    rows: dict[str, Row] = {}
    for entry in summary:
        row = rows.setdefault(entry["class"], {"case": "mean", "class": entry["class"]})
        row[entry["score"]] = entry["mean"]
    if OVERALL in rows:
        rows[OVERALL]["class"] = "all"
    return list(rows.values())


def plain(row: Mapping[str, Any]) -> Row:
    """A row for JSON, which knows no NaN, without the name of its case."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
        if name != "case"
    }


def write_scores(output_dir: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write scores.csv, summary.csv and summary.json.

    Args:
        output_dir: where they go.
        rows: of the cases.
        about: content of summary.json: "measure", "cases", "not_scored", where they are "tolerance",
            "annotated" and "together", and "summary", from `summarize`.
    """
    write_csv(output_dir / "scores.csv", rows)
    write_csv(output_dir / "summary.csv", about["summary"])
    write_json(output_dir / "summary.json", about, indent=1)


def read_means(path: Path) -> Row:
    """The mean of each score over the cases, from a summary.json; None where no case has it.

    Raises:
        InputError: another file.
    """
    entries = read_json(path).get("summary")
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list under 'summary': name the summary.json of an evaluation")
    return {entry["score"]: entry["mean"] for entry in entries if entry["class"] == OVERALL}
