"""`python -m bundle auto`: from images and labels to an ensemble, its scores, and the way to segment with it.

It calls `plan` for the data and `crossval` for the networks, and says each command before it runs, so that
each can be given alone. How many folds there are, and whether cases are held out, follow from the minutes and
from the number of cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.data.datalist import read_source
from bundle.made_of import require_same, write_record
from bundle.runs.commands import run_python, say
from scripts.errors import InputError

#: Share of the minutes for training; the rest is for reading the data, segmenting, choosing and judging.
TRAINING = 0.8

#: Minutes that a fold should have, at least; and the least and the most folds.
A_FOLD, FOLDS = 15, (3, 5)

#: From so many cases on some are held out, and which share of them.
MANY, HELD_OUT = 40, 0.15


def folds_of(minutes: float, cases: int) -> int:
    """How many folds: more where each still has time to learn, and never more than cases.

    Raises:
        InputError: one case alone, which leaves none to judge by.
    """
    if cases < 2:
        raise InputError(
            f"{cases} case is too few: auto needs 2 or more, some to learn from and some to judge by; "
            "add cases, or cut the image into several"
        )
    return min(max(math.floor(TRAINING * minutes / A_FOLD), FOLDS[0]), FOLDS[1], cases)


def auto(output_dir: Path, minutes: float, ids: dict[str, Any], **source: Any) -> None:
    """Carry out `bundle.cli.auto`, whose arguments these are; `source` are those of `plan`."""
    output_dir = output_dir.resolve()
    cases = len(read_source(*(source[name] for name in ("images", "labels", "nnunet", "msd"))).cases)
    folds = folds_of(minutes, cases)
    options = {**source, "folds": folds, "test_fraction": HELD_OUT if cases >= MANY else 0.0}
    made_of = {"minutes": minutes, "options": options, "ids": ids}
    data, experiment = output_dir / "data", output_dir / "data" / "experiment.json"
    a_fold = round(TRAINING * minutes / folds, 2)
    say(
        f"{minutes:g} minutes for {cases} cases: {folds} folds of {a_fold:g} minutes, "
        f"{1 - TRAINING:.0%} for the rest"
    )
    if experiment.is_file():
        require_same(output_dir, made_of)
    else:
        write_record(output_dir, made_of)
        run_python("-m", "bundle", "plan", *as_options({**options, "output_dir": data}))
    run_python(
        *("-m", "bundle", "crossval"),
        *as_options({"args_file": experiment, "output_dir": output_dir / "crossval", "minutes": a_fold}),
        *as_options(ids),
    )


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Options of a command line: a list repeats its option, True is a flag, None and False are left out."""
    options: list[str] = []
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                options.append(f"--{name}")
            elif item is not None and item is not False:
                options += [f"--{name}", str(item.resolve() if isinstance(item, Path) else item)]
    return options
