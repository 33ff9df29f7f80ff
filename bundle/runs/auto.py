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
from bundle.runs.crossval import OF_A_FOLD
from bundle.runs.experiments import read_experiment
from scripts.errors import InputError
from scripts.settings import CONFIGS

#: Options of plan: it prints its reasons, and does not try how long a training takes, which minutes say.
SHOWN = ("--explain", "--no-trial")

#: Share of the minutes for training; the rest is for reading the data, segmenting, choosing and judging.
TRAINING = 0.8

#: Minutes that a fold should have, at least; and the least and the most folds.
A_FOLD, FEWEST, MOST = 15, 3, 5

#: Minutes that a fold has at least.
LEAST = 0.5

#: From so many cases on some are held out, and which share of them.
MANY, HELD_OUT = 40, 0.15


def folds_of(minutes: float, cases: int) -> int:
    """How many folds: more where each still has A_FOLD minutes, and never more than cases.

    Raises:
        InputError: fewer than two cases, which leave none to judge by.
    """
    if cases < 2:
        raise InputError(
            f"auto needs 2 cases or more, some to learn from and some to judge by, and finds {cases}: add "
            "cases, or cut the image into several"
        )
    return min(max(math.floor(TRAINING * minutes / A_FOLD), FEWEST), MOST, cases)


def auto(
    output_dir: Path,
    minutes: float,
    images: Path | None,
    labels: Path | None,
    nnunet: Path | None,
    msd: Path | None,
    subject_pattern: str | None,
    subjects: Path | None,
    label_names: list[str] | None,
    instances: bool,
    ignore: int | None,
    ids: dict[str, Any],
) -> None:
    """Carry out `bundle.cli.auto`, whose arguments these are."""
    output_dir = output_dir.resolve()
    cases = len(read_source(images, labels, nnunet, msd).cases)
    folds = folds_of(minutes, cases)
    a_fold = round(TRAINING * minutes / folds, 2)
    if a_fold < LEAST:
        least = math.ceil(LEAST * folds / TRAINING)
        raise InputError(
            f"--minutes is {minutes:g}, which leaves each of {folds} folds {a_fold:g} minutes of training: "
            f"give {least} or more"
        )
    _require_known(ids)
    given = {
        **{"images": images, "labels": labels, "nnunet": nnunet, "msd": msd, "instances": instances},
        **{"subject_pattern": subject_pattern, "subjects": subjects, "label_name": label_names},
        "ignore": ignore,
    }
    chosen = {"folds": folds, "test_fraction": HELD_OUT if cases >= MANY else 0, "minutes": a_fold}
    planned = as_options({**given, **chosen})
    say(
        f"{cases} cases, {minutes:g} minutes: {folds} folds of {a_fold:g} minutes of training each, and "
        f"{minutes - folds * a_fold:.3g} for the rest"
    )
    made_of = {"options of plan": planned, "ids": ids}
    experiment = output_dir / "data" / "experiment.json"
    if experiment.is_file() and any((output_dir / "crossval").glob("fold*")):
        require_same(output_dir, made_of)
    else:
        write_record(output_dir, made_of)
        run_python("-m", "bundle", "plan", "--output_dir", str(experiment.parent), *planned, *SHOWN)
    files = as_options({"args_file": experiment, "output_dir": output_dir / "crossval"})
    set_ids = [part for name, value in ids.items() for part in (f"--{name}", str(value))]
    run_python("-m", "bundle", "crossval", *files, *set_ids)


def _require_known(ids: Mapping[str, Any]) -> None:
    """Refuse ids that crossval would refuse once the data are read.

    Raises:
        InputError: an unknown id, or one that auto sets.
    """
    read_experiment(CONFIGS / "experiments" / "hippocampus.json", ids)
    given = next((name for name in ("minutes", *OF_A_FOLD) if name in ids), None)
    if given is not None:
        raise InputError(f"{given} is {ids[given]!r}, and auto sets it: leave it out")


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
